"""What each component brought: variants compared item by item, with intervals, and one word for each comparison.

    trials --on_ray, Ray Tune--> scores of every item --verdict (chance, power), probes--> effects
    effects --family--> words, --retention--> what was kept, --gate--> who may be registered, --compare--> verdict.json
    verdict.json + what the stages left --gather--> report: the table in the terminal, page: one HTML file (plots), markdown
    verdict.json + what the stages left --promote--> what is missing, or a model card and an alias

The verdict's JSON is the one source of every number that is shown, printed or tracked.
"""
