"""From medical sources to conversations that a model learns to answer.

raw files --formats, one maker a file--> conversations --without those that hold an exam question--> conversations.parquet
          --template--> token ids and which of them are trained--> packed rows (medschool.tokens)
"""
