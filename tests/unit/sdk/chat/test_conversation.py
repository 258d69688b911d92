"""Conversations with a stand-in for the model: what is read again, how answers end, what failures leave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from driver_shim.errors import DeviceLost, NpuError
from sdk.chat.conversation import Conversation
from sdk.chat.figures import COMMAND_BYTES, Figures, Meter
from sdk.chat.sampling import Sampler, Sampling
from sdk.chat.sequence import ContextFull, Finish, TokenSequence, last_candidates
from sdk.chat.template import ChatTemplate, Message
from sdk.chat.vocabulary import Vocabulary
from tests.support.needs import module_of_extra
from tests.support.small_chat import (
    BEGIN,
    CONTEXT,
    TICKS,
    StandInCounters,
    StandInModel,
    StandInState,
    byte_level_metadata,
)

module_of_extra("jinja2", "chat")
module_of_extra("tokenizers", "chat")

GREEDY = Sampler(Sampling())


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_level_metadata())


class Talk(NamedTuple):
    """A conversation, and what it runs on."""

    conversation: Conversation
    model: StandInModel
    state: StandInState

    def ask(self, text: str, most: int | None = None) -> str:
        return "".join(self.conversation.ask(text, GREEDY, most=most))


def talk(
    answers: Sequence[str] = (), *, context: int = CONTEXT, system: str | None = None, best: int | None = None
) -> Talk:
    model = StandInModel(len(vocabulary()), [vocabulary().encode(answer) for answer in answers], best)
    state = StandInState(context)
    sequence = TokenSequence(model, state, Meter(StandInCounters()))
    template = ChatTemplate(byte_level_metadata(), vocabulary())
    return Talk(Conversation(sequence, vocabulary(), template, system=system), model, state)


def test_an_answer_comes_in_pieces_and_becomes_part_of_the_conversation() -> None:
    made = talk(["Hello world 🙂"])
    answer = made.conversation.ask("Hi", GREEDY)
    pieces = list(answer)
    assert len(pieces) > 1 and "".join(pieces) == answer.text == "Hello world 🙂"
    assert answer.finish is Finish.END
    assert made.conversation.messages == [Message("user", "Hi"), Message("assistant", "Hello world 🙂")]


def test_the_device_holds_what_was_asked_and_said_up_to_the_end() -> None:
    made = talk(["the world"])
    made.ask("Hi")
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert made.state.tokens == vocabulary().encode(asked + "the world")


def test_of_a_second_question_only_what_is_new_is_read() -> None:
    made = talk(["the world", "and a"])
    made.ask("Hi")
    held = made.state.length
    answer = made.conversation.ask("Why?", GREEDY)
    list(answer)
    assert answer.figures.reused_tokens == held
    assert answer.figures.prefill.tokens == answer.prompt_tokens - held
    assert made.state.rewinds[-1] == held


@pytest.mark.parametrize("best", [None, 8])
def test_answers_are_those_of_a_conversation_that_is_read_from_the_start(best: int | None) -> None:
    kept = talk(best=best)
    answers = [kept.ask(text, most=6) for text in ("one", "two", "three")]
    again = talk(best=best)
    again.conversation.messages = list(kept.conversation.messages[:4])
    assert again.ask("three", most=6) == answers[2]


def test_after_a_reset_nothing_of_what_was_said_is_used_but_the_systems_message_is() -> None:
    made = talk(system="Be brief.")
    first = made.ask("Hi", most=6)
    made.ask("More", most=6)
    made.conversation.reset()
    assert made.conversation.messages == [Message("system", "Be brief.")]
    assert made.ask("Hi", most=6) == first
    assert made.state.length < 60


def test_a_text_gets_its_beginning_once() -> None:
    metadata = byte_level_metadata(**{"tokenizer.ggml.add_bos_token": True})
    begun = Vocabulary(metadata)
    for source in ("{{ messages[0].content }}", "{{ bos_token }}{{ messages[0].content }}"):
        state = StandInState()
        sequence = TokenSequence(StandInModel(len(begun), [[]]), state, Meter(StandInCounters()))
        list(Conversation(sequence, begun, ChatTemplate(metadata, begun, source)).ask("Hi", GREEDY))
        assert state.tokens == [BEGIN, *begun.encode("Hi")]


# --- how answers end -------------------------------------------------------------------------------------------


def test_an_answer_ends_after_the_most_tokens_that_were_asked_for() -> None:
    made = talk(["a" * 50])
    answer = made.conversation.ask("Hi", GREEDY, most=7)
    assert "".join(answer) == "a" * 7
    assert (answer.finish, answer.tokens) == (Finish.TOKENS, 7)


def test_an_answer_ends_where_the_context_does_and_says_so() -> None:
    made = talk(["a" * 50], context=40)
    answer = made.conversation.ask("Hi", GREEDY)
    text = "".join(answer)
    assert answer.finish is Finish.CONTEXT
    assert made.state.length == 40
    assert answer.prompt_tokens + len(text) == 41  # the last token was chosen and not read


def test_a_question_that_does_not_fit_is_refused_with_the_numbers_and_nothing_changes() -> None:
    made = talk(["a"], context=40)
    made.ask("Hi")
    before = (list(made.state.tokens), list(made.conversation.messages))
    with pytest.raises(ContextFull, match="room for 40") as caught:
        made.conversation.ask("x" * 100, GREEDY)
    assert (caught.value.context, caught.value.tokens > 100) == (40, True)
    assert (made.state.tokens, made.conversation.messages) == before


def test_a_question_that_fits_to_the_last_token_is_answered_by_one() -> None:
    size = len(vocabulary().encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"))
    made = talk(["the the"], context=size)
    answer = made.conversation.ask("Hi", GREEDY)
    list(answer)
    assert (answer.finish, answer.tokens) == (Finish.CONTEXT, 1)


def test_an_answer_can_be_stopped_and_what_was_said_stays_said() -> None:
    made = talk(["one two three", "and"])
    answer = made.conversation.ask("Hi", GREEDY)
    for piece in answer:
        assert piece
        assert answer.stop() == ""
    assert answer.finish is Finish.STOPPED
    assert made.conversation.messages[-1] == Message("assistant", answer.text)
    assert made.ask("More") == "and"


def test_a_character_that_was_stopped_half_way_is_shown_as_cut_short() -> None:
    made = talk(["a世"])
    answer = made.conversation.ask("Hi", GREEDY, most=2)
    assert "".join(answer) == answer.text == "a\ufffd"


def test_an_answer_stopped_before_it_began_leaves_no_trace() -> None:
    made = talk(["one"])
    answer = made.conversation.ask("Hi", GREEDY)
    answer.stop()
    assert made.conversation.messages == []
    assert made.ask("Hi") == "one"


def test_stopping_an_answer_that_has_ended_changes_nothing() -> None:
    made = talk(["one"])
    answer = made.conversation.ask("Hi", GREEDY)
    list(answer)
    said = list(made.conversation.messages)
    assert answer.stop() == ""
    assert (answer.finish, made.conversation.messages) == (Finish.END, said)


def test_an_answer_may_be_empty() -> None:
    made = talk([""])
    assert made.ask("Hi") == ""
    assert made.conversation.messages[-1] == Message("assistant", "")


def test_a_run_that_fails_leaves_the_conversation_as_it_was() -> None:
    made, same = talk(), talk()
    assert made.ask("one", most=5) == same.ask("one", most=5)
    said = list(made.conversation.messages)
    made.model.failing = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        made.ask("two")
    assert made.conversation.messages == said
    made.model.failing = None
    assert made.ask("two", most=5) == same.ask("two", most=5)


# --- figures ---------------------------------------------------------------------------------------------------


def test_tokens_ticks_and_bytes_are_counted_by_phase() -> None:
    made = talk(["aaaa"])
    answer = made.conversation.ask("Hi", GREEDY)
    list(answer)
    figures = answer.figures
    assert (figures.prefill.tokens, figures.decode.tokens) == (answer.prompt_tokens, 4)
    assert (figures.prefill.device_ticks, figures.decode.device_ticks) == (TICKS, 4 * TICKS)
    assert figures.prefill.bus_bytes == figures.decode.bus_bytes == 1000 + 2 * COMMAND_BYTES
    assert figures.first_token_seconds is not None
    assert figures.prefill.wall_seconds > 0


def test_figures_of_several_answers_add_up() -> None:
    made = talk(["aaaa", "aa"])
    answers = [made.conversation.ask(text, GREEDY) for text in ("Hi",)]
    list(answers[0])
    answers.append(made.conversation.ask("More", GREEDY))
    list(answers[1])
    total = Figures() + answers[0].figures + answers[1].figures
    assert total.decode.tokens == 6
    assert total.prefill.tokens + total.reused_tokens == sum(answer.prompt_tokens for answer in answers)
    assert total.first_token_seconds == answers[0].figures.first_token_seconds


def test_a_lost_device_is_what_is_told_of_and_not_that_its_counters_are_gone() -> None:
    class Gone(StandInCounters):
        def activity(self):  # type: ignore[no-untyped-def]
            if self._looks:
                raise NpuError("no counters")
            return super().activity()

    model = StandInModel(len(vocabulary()))
    model.failing = DeviceLost("gone")
    sequence = TokenSequence(model, StandInState(), Meter(Gone()))
    with pytest.raises(DeviceLost):
        list(sequence.follow([5], GREEDY, ends=frozenset()))


# --- what models give ------------------------------------------------------------------------------------------


def test_scores_are_found_whatever_outputs_are_called() -> None:
    whole = last_candidates({"logits": np.arange(6, dtype=np.float32).reshape(1, 2, 3)})
    assert (whole.scores.tolist(), whole.tokens.tolist()) == ([3, 4, 5], [0, 1, 2])
    best = last_candidates({"i": np.array([[[7, 9]]]), "v": np.array([[[2.0, 1.0]]], np.float32)})
    assert (best.scores.tolist(), best.tokens.tolist()) == ([2, 1], [7, 9])


def test_a_model_that_gives_no_scores_is_refused() -> None:
    with pytest.raises(NpuError, match="no scores"):
        last_candidates({"tokens": np.array([[1]])})


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        talk().conversation.sequence.follow([], GREEDY, ends=frozenset())
