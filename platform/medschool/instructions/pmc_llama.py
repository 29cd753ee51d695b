"""The prompt that PMC-LLaMA was tuned with, as a chat template in Jinja.

Source: chaoyi-wu/PMC-LLaMA, SFT/train.py and SFT/eval/qa_inference.py, which fill in the prompt of Stanford Alpaca; the target
is the output and `</s>`, directly behind `### Response:` without a space.

A user's message is `instruction`, or `instruction`, a blank line and `input`: the first blank line divides the two. Theirs has
one question and one answer. What is ours, because theirs has no rule for it: a system message stands before everything, with a
blank line behind it; a later user's turn appends its `### Instruction:` behind the `</s>` of the answer before, without the
opening sentences. So a conversation that goes on only grows, and every answer is seen behind what it will be asked behind.

There is no BOS, as there is none before a document in continued pretraining (medschool.tokens.pack); theirs has one.
"""

OPENING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
)
"""First sentences without and with an input."""

PMC_LLAMA = (
    "{%- set asked = namespace(before=false) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '\\n\\n### Response:' + message['content'] + eos_token }}"
    "{%- elif message['role'] == 'user' -%}"
    "{%- set parts = message['content'].split('\\n\\n', 1) -%}"
    "{%- set has_input = parts | length > 1 and parts[1] -%}"
    "{%- if asked.before -%}{{ '\\n\\n' }}"
    f"{{%- elif has_input -%}}{{{{ '{OPENING[1]}' + '\\n\\n' }}}}"
    f"{{%- else -%}}{{{{ '{OPENING[0]}' + '\\n\\n' }}}}"
    "{%- endif -%}"
    "{{ '### Instruction:\\n' + parts[0] }}"
    "{%- if has_input -%}{{ '\\n\\n### Input:\\n' + parts[1] }}{%- endif -%}"
    "{%- set asked.before = true -%}"
    "{%- else -%}{{ raise_exception('a message of the role ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n\\n### Response:' }}{%- endif -%}"
)
