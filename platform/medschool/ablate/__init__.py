"""What each component brought: variants compared item by item, with intervals, and one word for each comparison.

    trials --on_ray, Ray Tune--> scores of every item --verdict, probes--> effects --compare--> verdict.json, and the gate
    verdict.json + what the stages left --gather--> report: the table in the terminal, page: one HTML file (plots, page.html.j2)

The verdict's JSON is the one source of every number that is shown, printed or tracked.
"""
