"""Public sets of medical questions and conversations, brought into the store as their authors released them.

    authors' host --download: resumed, pinned or locked--> home/downloads/<set>/
    a folder, a file or an archive of the user's ----------------------+
                                                                        +--given--> the released files, under fixed names
    their records, read with the makers and readers of this product --counted--> as many as were published?
    store/raw/<set>/..., LOCK.json, and last MANIFEST.json

    sets        what there is: addresses, digests, file names, counts, the lines for a recipe
    download    one file over HTTP
    given       released files found in what is at hand
    medquad     MedQuAD's XML as JSON lines
    counted     records of a released file, and how many of them can be used
    shelf       the set's folder in the store: lock, manifest, whole or not

A digest stands in `sets` where it is known. Where it is not, the first file that comes in is told with its sha256 and kept in
LOCK.json, and whatever comes later must be equal to it, downloaded or given. A lock shows that nothing has changed since; it
cannot show that the first one was right.
"""
