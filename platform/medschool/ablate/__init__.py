"""What each component brought: variants compared item by item, with intervals, and one word for each comparison.

losses of every variant --verdict--> table, effects with intervals, gate --report--> what the user reads
"""
