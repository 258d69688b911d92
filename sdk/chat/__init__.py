"""Conversations with a language model whose memory lies on the device.

`chat_model.py` is the door, `conversation.py` what one gets: messages in, pieces of text out. What they are made of,
from the ground up: `metadata.py` reads what a GGUF file says of itself, `vocabulary.py` makes tokens of text and back
(`pre_tokenisers.py`, `byte_level.py` and `sentence_pieces.py` are its kinds), `text_stream.py` makes text of tokens as
they come, `template.py` writes messages as the model was taught to read them, `sampling.py` chooses tokens,
`sequence.py` asks the device for them and counts (`figures.py`). `port.py` states what is needed of a model and its
state.

Nothing here knows of the terminal (`sdk/cli/chat.py`) or of how a state lies in device memory (`sdk/state/`).
"""
