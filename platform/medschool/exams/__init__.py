"""Multiple-choice exams: read, filtered, laid out as text; low in the order, because corpus and instructions need them too.

raw exam files --formats--> items --malformed and repeated ones dropped, fixed-seed sample--> items.parquet
items + any text --overlap--> which texts hold an exam question
"""
