"""The configuration: precedence, and messages that name what is wrong and what would be right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from degre_prod.config import PAPER, GeneratorConfig, Settings, load_settings, merge, paper_settings, valid_keys
from degre_prod.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DEGRE_"):
            monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    (folder / "degre.yaml").write_text(text)
    return folder / "degre.yaml"


def refused(path: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_said_explicitly_wins_then_environment_then_file_then_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "serving: {port: 1, deadline_ms: 10, replicas: 3}")
    monkeypatch.setenv("DEGRE_SERVING__PORT", "2")
    monkeypatch.setenv("DEGRE_SERVING__DEADLINE_MS", "20")
    serving = load_settings(file, {"serving": {"port": 4}}).serving
    assert (serving.port, serving.deadline_ms, serving.replicas, serving.host) == (4, 20.0, 3, "127.0.0.1")


def test_a_copy_with_one_value_changed_does_not_meet_the_environment_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    monkeypatch.setenv("DEGRE_SERVING__CLOCK", "wall")
    monkeypatch.setenv("DEGRE_SERVING__PORT", "8001")
    changed = Settings(**merge(settings.model_dump(), {"serving": {"clock": "request", "port": 0}}))
    assert (changed.serving.clock, changed.serving.port) == ("request", 0)
    assert changed.mining == settings.mining


def test_the_tree_is_frozen_and_merging_changes_nothing() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.serving.port = 1
    base = {"a": {"b": 1, "c": 2}}
    assert merge(base, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert base == {"a": {"b": 1, "c": 2}}


def test_every_default_is_valid_and_listed() -> None:
    keys = list(valid_keys())
    assert len(keys) == len(set(keys))
    assert {"serving.deadline_ms", "mining.beam_width", "generator.tau_q", "redis.url"} <= set(keys)
    assert load_settings() == Settings()


def test_the_paper_mode_presets_what_is_not_set_explicitly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_EVALUATOR__HEAD", "step")
    settings = load_settings(written(tmp_path, "mode: paper\ngenerator: {targets: backed_up}"))
    assert (settings.evaluator.prefix_state, settings.evaluator.head) == ("attention", "step")
    assert (settings.generator.targets, settings.generator.decoder) == ("backed_up", "attention")
    assert (settings.mining.beams, settings.mining.sweeps) == ("prefix", 0)
    assert settings.generator.alpha == GeneratorConfig().alpha


def test_every_preset_of_the_paper_mode_differs_from_the_default() -> None:
    paper, default = Settings(mode="paper").model_dump(), Settings().model_dump()
    for section, values in PAPER.items():
        for name, value in values.items():
            assert paper[section][name] == value != default[section][name]
        assert paper[section] == default[section] | values
    assert {name: v for name, v in paper.items() if name not in PAPER} == {
        name: "paper" if name == "mode" else v for name, v in default.items() if name not in PAPER
    }


def test_paper_settings_keep_what_was_set_and_leave_the_given_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_REDIS__URL", "redis://:password@host:1/0")
    given = load_settings(None, {"mining": {"requests": 7}, "generator": {"decoder": "gru"}})
    given = given.model_copy(update={"evaluator": given.evaluator.model_copy(update={"seed": 3})})
    paper = paper_settings(given)
    assert (paper.mode, paper.mining.requests, paper.mining.beams) == ("paper", 7, "prefix")
    assert (paper.generator.decoder, paper.generator.targets) == ("gru", "one_step")
    assert (paper.evaluator.seed, paper.evaluator.head) == (3, "continuation")
    assert paper.redis == given.redis
    assert given.mode == "default"
    assert paper_settings(paper) == paper


def test_lists_and_secrets_come_from_the_environment_as_json_and_are_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEGRE_SERVING__TOKENS", '["first", "second"]')
    monkeypatch.setenv("DEGRE_REDIS__URL", "redis://:password@host:1/0")
    settings = load_settings()
    assert [t.get_secret_value() for t in settings.serving.tokens] == ["first", "second"]
    assert settings.redis.url is not None
    assert settings.redis.url.get_secret_value() == "redis://:password@host:1/0"
    assert "first" not in repr(settings)
    assert "password" not in repr(settings)


def test_a_list_that_is_no_json_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_SERVING__TOKENS", "s3cret")
    message = refused()
    assert "DEGRE_SERVING__TOKENS" in message
    assert "s3cret" not in message


def test_unknown_keys_name_themselves_and_the_nearest_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_SERVING__DEADLINE", "5")
    message = refused(written(tmp_path, "mining: {beam_widht: 4}\nminning: 3"))
    assert "mining.beam_widht is not a setting; did you mean mining.beam_width" in message
    assert "minning is not a setting; did you mean" in message
    assert "DEGRE_SERVING__DEADLINE is not a setting; did you mean serving.deadline_ms" in message
    assert message.count("serving.deadline is") == 0  # once, by the name it was given


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("serving: {port: 70000}", "serving.port: Input should be less than or equal to 65535"),
        ("serving: {port: many}", "serving.port: Input should be a valid integer"),
        ("serving: {clock: sun}", "serving.clock: Input should be 'wall' or 'request'"),
        ("generator: {targets: sharp}", "generator.targets: Input should be 'backed_up' or 'one_step'"),
        ("generator: {width: 10}", "generator.width: Input should be a multiple of 4"),
        ("generator: {decoder: lstm}", "generator.decoder: Input should be 'gru' or 'attention'"),
        ("mode: papers", "mode: Input should be 'default' or 'paper'"),
        ("evaluator: {width: 5}", "evaluator.width: Input should be a multiple of 2"),
        ("mining: {keep: 0, beam_width: 0}", "mining.keep: "),
        ("serving:", "serving: Input should be a valid dictionary"),
    ],
)
def test_wrong_values_name_their_key_and_what_would_be_right(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(written(tmp_path, text))


def test_every_wrong_value_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_MINING__KEEP", "none")
    message = refused(written(tmp_path, "mining: {beam_width: 0}\nserving: {port: -1}"))
    assert all(key in message for key in ("mining.keep", "mining.beam_width", "serving.port"))


@pytest.mark.parametrize("text", ["- a list", "serving: {", "1: {port: 2}", "\x00"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"degre\.yaml"):
        load_settings(written(tmp_path, text))


def test_a_missing_file_is_named_and_an_empty_one_is_fine(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")
    assert load_settings(written(tmp_path, "")) == Settings()


def test_variables_of_the_tests_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEGRE_TEST_REDIS_URL", "redis://elsewhere")
    assert load_settings() == Settings()
