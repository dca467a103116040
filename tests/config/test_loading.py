"""Reading a config: what loads, and that every mistake is one line with file, line and remedy."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest
import yaml
from fid import files

from config.errors import UserError, printable, shorten
from config.loading import MAX_CONFIG_BYTES, load_config, save_config
from config.reference import yaml_word
from config.schema import Config
from config.section import REMOVED, user_path

PRESETS = sorted((Path(__file__).parents[2] / "config").glob("*.yml"))
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_text(text: str) -> Path:
        path = tmp_path / "run.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def refusal(path: Path, *overrides: str) -> str:
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert message.isprintable(), message  # no line breaks, no control characters
    return message


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_presets_load(preset):
    assert isinstance(load_config(preset), Config)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_presets_survive_saving_and_loading(preset, tmp_path):
    config = load_config(preset)
    save_config(config, tmp_path / "resolved.yml")
    assert load_config(tmp_path / "resolved.yml") == config


def test_settings_survive_saving_and_loading(write, tmp_path):
    source = write(
        "run: runs/größer\n"
        "seed: 9223372036854775807\n"
        "training: {learning_rate: 1.0e-5, max_grad_norm: 0.3}\n"
        "decoding: {sweet_spot: 4, mask_schedule: 'square'}\n"
        "tokenizer: {weights: weights/vqgan.pt}\n"
    )
    config = load_config(source)
    save_config(config, tmp_path / "resolved.yml")
    assert load_config(tmp_path / "resolved.yml") == config
    assert config.training.learning_rate == 1e-5
    assert config.tokenizer.weights == Path("weights/vqgan.pt")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "{}\n"])
def test_an_empty_file_gives_the_defaults(write, text):
    assert load_config(write(text)) == Config()


def test_a_partial_section_keeps_the_other_defaults(write):
    config = load_config(write("decoding:\n  total_iter: 5\n"))
    assert config.decoding.total_iter == 5
    assert config.decoding.choice_temperature == 4.5
    assert config.training == Config().training


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_floats_may_be_written_in_every_usual_way(write, number):
    path = write(f"training:\n  learning_rate: {number}\n")
    assert load_config(path).training.learning_rate == 1e-4
    assert load_config(write(""), [f"training.lr={number}"]).training.learning_rate == 1e-4


def test_lr_is_a_synonym_in_files_and_overrides(write):
    path = write("training:\n  lr: 0.5\n")
    assert load_config(path).training.learning_rate == 0.5
    assert load_config(path, ["training.lr=0.25"]).training.learning_rate == 0.25
    assert load_config(path, ["training.learning_rate=0.125"]).training.learning_rate == 0.125


def test_overrides_apply_in_their_order_over_the_file(write):
    path = write("decoding:\n  total_iter: 5\n  sweet_spot: 3\n")
    overrides = ["decoding.total_iter=6", "decoding.total_iter=7", "decoding.sweet_spot=null"]
    config = load_config(path, [*overrides, "run=runs/a=b", "tokenizer.training.epochs=2"])
    assert config.decoding.total_iter == 7
    assert config.decoding.sweet_spot is None
    assert config.run == Path("runs/a=b")
    assert config.tokenizer.training.epochs == 2
    assert config.decoding.choice_temperature == 4.5


@pytest.mark.parametrize("find", [user_path, lambda path: Path(files.user_path(str(path)))])
@pytest.mark.parametrize(("on_disk", "typed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_suite_and_scorer_find_a_folder_however_its_accents_are_written(
    tmp_path, on_disk, typed, find
):
    def path(form: str, *more: str) -> Path:
        return tmp_path.joinpath(unicodedata.normalize(form, "caf\u00e9"), *more)

    path(on_disk).mkdir()
    assert find(path(typed)) == path(on_disk)
    assert find(path(typed, "new", "\u00e9.png")) == path(on_disk, "new", "\u00e9.png")
    path(typed).mkdir()  # where both are there, the one that was named is meant
    assert find(path(typed)) == path(typed)


def test_paths_may_begin_with_the_home_folder(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write("run: ~/runs/a\ndata: {root: ~/cats}\ntokenizer: {weights: ~/a.pt}\n")
    config = load_config(path, ["data.val=~/val", ("transformer.weights", "~/b.pt")])
    assert (config.run, config.data.root) == (tmp_path / "runs/a", tmp_path / "cats")
    assert config.tokenizer.weights == tmp_path / "a.pt"
    assert (config.data.val, config.data.train) == (tmp_path / "val", None)
    assert config.transformer.weights == tmp_path / "b.pt"


def test_overrides_may_be_lists(write):
    config = load_config(write(""), ["data.mean=[0.5, 0.5, 0.25]"])
    assert config.data.mean == (0.5, 0.5, 0.25)


MISTAKES = {
    "unknown section": ("seed: 1\ntraning:\n  epochs: 3\n", 2, ["traning", "'training'?"]),
    "unknown key": (
        "training:\n  epochs: 3\n  batch_sise: 4\n",
        3,
        ["unknown key training.batch_sise", "'batch_size'?", "learning_rate"],
    ),
    "unknown key two levels down": (
        "tokenizer:\n  training:\n    epoch: 3\n",
        3,
        ["tokenizer.training.epoch", "'epochs'?"],
    ),
    "dotted key": (
        "seed: 1\ntokenizer.training.epochs: 3\n",
        2,
        ["is written with a dot; write epochs below tokenizer.training:, indented"],
    ),
    "key of another section": (
        "seed: 1\ntotal_itr: 8\n",
        2,
        ["unknown key total_itr (did you mean 'decoding.total_iter'?)"],
    ),
    "key of several other sections": (
        "decoding: {learning_rate: 1}\n",
        1,
        ["(did you mean 'tokenizer.training.learning_rate' or 'training.learning_rate'?)"],
    ),
    "too few values": (
        "data: {mean: [0.4]}\n",
        1,
        ["data.mean is [0.4]: expected 3 values in brackets, such as [0.4868, 0.4341, 0.3844]"],
    ),
    "too many values": ("training: {betas: [0.4, 0.4, 0.4]}\n", 1, ["expected 2 values"]),
    "no brackets": ("training: {betas: 0.9}\n", 1, ["betas is 0.9: expected 2 values in brackets"]),
    "neither a number nor a word": (
        "decoding: {batch_size: 0}\n",
        1,
        ["decoding.batch_size is 0: ", "greater than or equal to 1, or input should be 'auto'"],
    ),
    "two mistakes": (
        "seed: -1\ndecoding: {batch_size: 0}\n",
        1,
        ["seed is -1: input should be greater than or equal to 0 (and 1 more)"],
    ),
    "none for null": ("decoding: {sweet_spot: none}\n", 1, ["is 'none': ", "write null"]),
    "None for a path": (
        "transformer: {weights: None}\n",
        1,
        ["transformer.weights is 'None': expected a path (write null for nothing)"],
    ),
    "null for a mapping": (
        "search: {space: null}\n",
        1,
        ["space is None: expected dotted keys and their ranges, such as"],
    ),
    "unknown device": ("device: gpu\n", 1, ["allowed are auto, cpu, cuda and cuda:N"]),
    "one end of a range": (
        "search: {space: {training.weight_decay: {low: 1}}}\n",
        1,
        ["search.space.training.weight_decay.high: field required"],
    ),
    "colon without a space": (
        "decoding:\n  rule:maskgit\n  # word\n  total_iter: 8\n",
        2,
        ["not valid YAML: a space must follow the colon of rule:"],
    ),
    "colon before a no-break space": (
        "decoding:\n  rule:\u00a0maskgit\n  total_iter: 8\n",
        2,
        ["not valid YAML: a space that is no plain one, such as a no-break space"],
    ),
    "no-break spaces as indentation": (
        "decoding:\n\u00a0 rule: maskgit\n  total_iter: 8\n",
        2,
        ["a no-break space"],
    ),
    "equals sign": (
        "training:\n  epochs = 3\n  batch_size: 4\n",
        2,
        ["not valid YAML: write epochs: instead of epochs ="],
    ),
    "quoted number": (
        "transformer: {conv_kernel: '3'}\n",
        1,
        ["conv_kernel is '3': input should be 0 or 3 (write it without quotes)"],
    ),
    "key in capitals": ("training: {EPOCHS: 3}\n", 1, ["(did you mean 'epochs'?)"]),
    "key with a dash": ("decoding: {mask-func: cosine}\n", 1, ["(did you mean 'mask_schedule'?)"]),
    "ranges by section": (
        "search: {space: {training: {weight_decay: {low: 0, high: 1}}}}\n",
        1,
        ["expected a dotted key, such as training.weight_decay: {low: 0.0, high: 0.1}"],
    ),
    "lab form without keys": ("seed: 1\nmodel_param: 3\n", 2, ["expected a section of keys"]),
    "wrong type": ("training:\n  epochs: many\n", 2, ["training.epochs", "'many'", "integer"]),
    "yes for a number": ("training:\n  lr: yes\n", 2, ["is True: input should be a valid number"]),
    "octal number": ("seed: 010\n", 1, ["seed is '010': input should be a valid integer"]),
    "minutes and seconds": ("training: {max_minutes: 1:30}\n", 1, ["max_minutes is '1:30'"]),
    "a fraction for a count": ("training:\n  epochs: 2.5\n", 2, ["training.epochs", "2.5"]),
    "a mapping for a number": ("training:\n  epochs: {a: 1}\n", 2, ["training.epochs", "integer"]),
    "a number for a section": ("seed: 1\ntraining: 3\n", 2, ["training", "3"]),
    "below the range": ("seed: -1\n", 1, ["seed is -1", "greater than or equal to 0"]),
    "above the range": ("\ntransformer:\n  dropout: 2\n", 3, ["transformer.dropout is 2", "1"]),
    "wrong word": (
        "masking:\n  mask_schedule: cosin\n",
        2,
        ["masking.mask_schedule is 'cosin'", "'maskgit_cosine'", "mean 'cosine'?"],
    ),
    "a list for a word": (
        "decoding:\n  mask_schedule: [cosine, linear]\n",
        2,
        ["decoding.mask_schedule is ['cosine', 'linear']: input should be 'cosine', "],
    ),
    "a section for a word": ("data: {hole_kind: {a: 1}}\n", 1, ["data.hole_kind: input should"]),
    "wrong place in a list": (
        "tokenizer:\n  downsample_after:\n    - 2\n    - x\n",
        4,
        ["tokenizer.downsample_after.1", "'x'"],
    ),
    "heads that do not divide": (
        "seed: 1\ntransformer:\n  dim: 12\n  num_heads: 5\n",
        2,
        ["dim 12", "num_heads 5", "1, 2, 3, 4, 6, 12"],
    ),
    "samples that would be equal": (
        "decoding: {samples: 2, choice_temperature: 0}\n",
        1,
        ["samples 2", "choice_temperature above 0"],
    ),
    "grid that does not match": (
        "transformer: {num_tokens: 64}\n",
        None,
        ["transformer.num_tokens 64", "16 x 16 = 256"],
    ),
    "codebooks that differ": (
        "tokenizer: {codebook_size: 512}\n",
        None,
        ["transformer.codebook_size 1024", "tokenizer.codebook_size 512"],
    ),
    "temperature too small to divide by": (
        "decoding: {temperature: 1e-320}\n",
        1,
        ["decoding.temperature is ", "greater than or equal to 0.000001"],
    ),
    "deviation too small to divide by": (
        "data: {std: [1e-320, 1, 1]}\n",
        1,
        ["data.std.0 is ", "greater than or equal to 0.001"],
    ),
    "range upside down": ("search: {low: 0.1, high: 0.01}\n", 1, ["low 0.1", "high 0.01"]),
    "key given twice": (
        "training:\n  epochs: 3\n  accumulate: 2\n  epochs: 4\n",
        4,
        ["training.epochs", "twice", "line 2"],
    ),
    "section given twice": ("data: {}\nseed: 1\ndata: {}\n", 3, ["data", "twice", "line 1"]),
    "alias": ("run: &name a\ndata:\n  root: *name\n", 3, ["alias *name"]),
    "tab": ("training:\n\tepochs: 3\n", 2, ["not valid YAML", "'\\t'"]),
    "bracket left open": ("data:\n  mean: [1, 2\nseed: 1\n", 3, ["not valid YAML"]),
    "text instead of a mapping": ("hello\n", None, ["contains a str", "sections"]),
    "list instead of a mapping": ("- a\n- b\n", None, ["contains a list", "sections"]),
    "two documents": ("seed: 1\n---\nseed: 2\n", 2, ["another document"]),
    "python object": ("seed: !!python/object:os.system 1\n", 1, ["not valid YAML"]),
    "impossible date": ("run: 2024-99-99\n", None, ["not valid YAML", "month"]),
    "control character": ("seed: 1\n\0", None, ["not valid YAML"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_line_finding_and_remedy(write, mistake):
    text, line, parts = MISTAKES[mistake]
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    for part in parts:
        assert part in message


def test_values_in_messages_never_break_the_line(write):
    assert "'a\\nb'" in refusal(write('training:\n  epochs: "a\\nb"\n'))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.epochs", ["section.key=value"]),
        ("=3", ["section.key=value"]),
        ("training..epochs=3", ["section.key=value"]),
        ("training.epochs=[", ["not valid YAML"]),
        ("training.epochs=*name", ["alias *name found"]),
        ("training.epochs=0", ["training.epochs is 0", "greater than or equal to 1"]),
        ("training.epochs=", ["training.epochs"]),
        ("training.lr=2", ["training.learning_rate is 2"]),
        ("training.epoch=2", ["unknown key training.epoch", "mean 'epochs'?"]),
        ("seed.low=2", ["'seed' is no section"]),
    ],
)
def test_a_bad_override_is_named_in_one_line(write, override, parts):
    message = refusal(write("seed: 1\n"), override)
    assert message.startswith(f"--set {override}: ")
    for part in parts:
        assert part in message


def test_a_missing_file_a_folder_and_a_binary_file_are_one_line_each(tmp_path):
    assert refusal(tmp_path / "none.yml") == f"{tmp_path / 'none.yml'}: no such config file"
    assert refusal(tmp_path).startswith(f"{tmp_path}: cannot be read")
    binary = tmp_path / "weights.pt"
    binary.write_bytes(b"\x80\x02\xff\xfe")
    assert refusal(binary).startswith(f"{binary}: cannot be read as text")


def test_a_file_too_large_for_a_config_is_refused_unread(write):
    path = write("#" * (MAX_CONFIG_BYTES + 1))
    assert "larger than" in refusal(path)


def test_deep_nesting_is_refused_not_crashed_on(write):
    path = write("[" * 500 + "]" * 500)
    assert refusal(path).startswith(f"{path}:1: nested deeper than")


def test_a_synonym_inside_an_overridden_section_counts(write):
    assert load_config(write(""), ["training={lr: 0.5}"]).training.learning_rate == 0.5


def test_an_overridden_section_keeps_its_other_keys(write):
    path = write("training: {lr: 0.25, accumulate: 5}\ntokenizer: {training: {batch_size: 3}}\n")
    sections = ["training={lr: 0.5, epochs: 3}", "tokenizer={training: {epochs: 2}}", "data={}"]
    named = ["training.lr=0.5", "training.epochs=3", "tokenizer.training.epochs=2"]
    assert load_config(path, sections) == load_config(path, named)


def test_a_key_and_its_synonym_together_are_refused(write):
    path = write("training:\n  learning_rate: 0.1\n  lr: 0.2\n")
    assert refusal(path).startswith(f"{path}:3: training.lr and training.learning_rate")


def test_an_empty_section_keeps_its_defaults(write):
    assert load_config(write("training:\n#  epochs: 3\ntokenizer:\n")) == load_config(write(""))


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("trainin.epochs=2", "--set trainin.epochs=2: unknown key trainin (did you mean"),
        ("training.epochs.x=3", "--set training.epochs.x=3: training.epochs"),
        ("training=null", "--set training=null: training is a section; name the key to change, "),
        ("tokenizer={training: }", "--set tokenizer={training: }: tokenizer.training is a section"),
        ("training={1: 2}", "--set training={1: 2}: "),
        ("training={epochs: 0}", "--set training={epochs: 0}: training.epochs is 0"),
        ("run=2024-99-99", "--set run=2024-99-99: the value is not valid YAML"),
        ("run=lr #1", "--set run=lr #1: # begins a comment; put the value in quotes"),
        ("run=#1", "--set run=#1: # begins a comment; put the value in quotes"),
        ("seed=" + "[" * 3000, "--set seed=["),
    ],
)
def test_a_wrong_override_is_blamed_on_itself(write, override, start):
    path = write("training:\n  accumulate: 5\n")
    assert refusal(path, override).startswith(start)


def test_keys_that_do_not_fit_together_name_the_flags_that_set_them(write):
    path = write("tokenizer:\n  downsample_after: [2, 4]\n")
    size, levels = "data.image_size=128", "tokenizer.downsample_after=[2]"
    assert refusal(path, "seed=1", size).startswith(f"{path} with --set {size}: transformer.num_")
    assert refusal(path, size, levels).startswith(f"{path}:1 with --set {levels}: tokenizer: ")
    both = refusal(path, size, levels, "tokenizer.upsample_after=[2]")
    assert f" with --set {size} and --set {levels} and --set tokenizer.up" in both


@pytest.mark.parametrize(
    "text",
    [
        "training: {betas: [0.9, 1.0]}",
        "data: {std: [0.2, 0.2, 0]}",
        "decoding: {choice_temperature: .inf}",
        "training: {epochs: true}",
        "training: {max_minutes: yes}",
        "transformer: {dropout: on}",
        "data: {mean: [0.5, 0.5, no]}",
        "tokenizer: {encoder_kernels: [3, 3, 3, 3, true]}",
        "tokenizer: {downsample_after: [2, true]}",
        "search: {space: {training.weight_decay: {low: 0, high: yes}}}",
        "tokenizer: {encoder_channels: [8, 8], encoder_kernels: []}",
        "tokenizer: {downsample_after: [2, 9]}",
        "tokenizer: {downsample_after: [2, 2]}",
        "tokenizer: {upsample_after: [4]}",
        "data: {image_size: 65}",
        "1: 2",
        '"a\\nb": 1',
    ],
)
def test_values_that_would_fail_later_fail_at_load(write, text):
    assert "\n" not in refusal(write(text))


@pytest.mark.parametrize("value", [None, True, False, 3, 0.5, "cosine", [0.1, None, [True]]])
def test_a_value_in_a_word_is_read_back_as_the_same(value):
    assert yaml.safe_load(yaml_word(value)) == value


def test_the_number_beyond_64_bits_is_told_as_a_power():
    assert (yaml_word(1 << 63), yaml_word((1 << 63) - 1)) == ("2^63", "9223372036854775807")


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [
        ("tokenizer.normalize_codes", "false", "true"),
        ("tokenizer.training.perceptual", "efficientnet-lite0", "lpips-vgg"),
        ("training.lr_step_epochs", "50", "10"),
        ("training.lr_step_factor", "0.1", "0.5"),
        ("data.hole_views", "0", "2"),
        ("transformer.relative_bias", "false", "true"),
        ("masking.shape", "random", "blocks"),
        ("masking.min_ratio", "0.0", "0.5"),
        ("decoding.dilate", "0", "1"),
        ("decoding.top_k", "null", "5"),
        ("decoding.top_p", "1.0", "0.9"),
        ("search.subset", "1.0", "0.5"),
        ("search.rungs", "4", "2"),
        ("search.cost", "0.3", "1.0"),
    ],
)
def test_a_key_that_is_gone_may_be_off_and_else_says_what_to_do(tmp_path, key, off, on):
    *sections, name = key.split(".")
    path = tmp_path / "old.yml"
    above = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    path.write_text(f"{above}{'  ' * len(sections)}{name}: {off}\n")
    assert load_config(path) == Config()
    path.write_text(f"scoring: {{{name}: {off}}}\n")  # in a section that never had the key
    with pytest.raises(UserError, match=f":1: unknown key scoring.{name}"):
        load_config(path)
    path.write_text(f"{above}{'  ' * len(sections)}{name}: {on}\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    line = len(sections) + 1
    assert str(error.value) == f"{path}:{line}: {key} was removed; {REMOVED[key].advice}"


def test_a_value_that_is_gone_says_what_to_do(tmp_path):
    path = tmp_path / "old.yml"
    path.write_text("training:\n  lr_schedule: step\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    said = (
        "training.lr_schedule: step was removed; use cosine, which falls to a hundredth by itself"
    )
    assert str(error.value) == f"{path}:2: {said}"


def test_no_key_is_both_gone_and_known():
    for key in REMOVED:
        *sections, name = key.split(".")
        section = reduce(getattr, sections, Config())
        assert name not in type(section).model_fields


def test_a_home_that_a_user_does_not_have_is_one_line(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry
    with pytest.raises(UserError, match=r"^~/a: this user has no home folder; set HOME, or write"):
        user_path("~/a")
    assert user_path("./~a") == Path("~a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unknown: --storge postgresql://me:SEC/R@ET@h/d (see)", "postgresql://me:***@h/d (see)"),
        ("https:/me:SEC/R@ET@h/d: no such folder", "https:/me:***@h/d: no such folder"),
        (f"seed is {shorten('postgresql://u:' + 'SEC' * 40 + '@h/d')}", "postgresql://u:***@h/d"),
        ("run is postgresql://u:my SECRET@h/d", "postgresql://u:***@h/d"),
        ("--set storage=mysql://h/d?password=SECRET&x=1: ", "mysql://h/d?password=***&x=1: "),
        ("postgresql://me@h:5432/d, allowed", "postgresql://me@h:5432/d, allowed"),
        ("write @ as %40; postgresql://...: x@y", "postgresql://...: x@y"),
    ],
)
def test_no_line_shows_a_password_wherever_a_user_typed_it(text, shown):
    assert str(UserError(text)).endswith(shown)
    assert "SEC" not in printable(text)
