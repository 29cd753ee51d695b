"""From medical sources to conversations that a model learns to answer.

raw files --formats, one maker a file--> conversations <--from_corpus, one maker a document-- documents
          --without those that hold an exam question--> conversations.parquet
          --teacher, where the recipe asks one--> with reasons, or under other wordings
          --template--> token ids and which of them are trained--> packed rows (medschool.tokens)
"""
