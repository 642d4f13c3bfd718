"""The configuration tree: precedence, strictness, messages, and the way to YAML and back."""

import dataclasses
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jaxdti.config import (
    Config,
    ModelConfig,
    PlantedConfig,
    TrainingConfig,
    config_fields,
    config_from_dict,
    config_sections,
    config_to_dict,
    load_config,
    save_config,
)
from jaxdti.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def test_defaults_then_file_then_overrides(write):
    path = write("task: classification\ntraining:\n  epochs: 7\n  batch_size: 8\nmodel:\n")
    config = load_config(path, ["--training.epochs=9", "model.pool=mean"])
    assert config.training.epochs == 9
    assert config.training.batch_size == 8
    assert config.training.learning_rate == TrainingConfig().learning_rate
    assert config.model == dataclasses.replace(ModelConfig(), pool="mean")


def test_nothing_given_is_the_default(write):
    assert load_config(None) == load_config(write("")) == load_config(write("# only a comment\n")) == Config()


@pytest.mark.parametrize(
    "override, path, expected",
    [
        ("training.learning_rate=5e-5", "training.learning_rate", 5e-5),
        ("training.learning_rate=1", "training.learning_rate", 1.0),
        ("training.clip_norm=null", "training.clip_norm", None),
        ("training.clip_norm=1", "training.clip_norm", 1.0),
        ("training.patience=3", "training.patience", 3),
        ("model.protein_kernels=3,5", "model.protein_kernels", (3, 5)),
        ("model.protein_kernels=7", "model.protein_kernels", (7,)),
        ("data.split_fractions=[0.5, 0.25, 0.25]", "data.split_fractions", (0.5, 0.25, 0.25)),
        ("model.reference=true", "model.reference", True),
        ("data.train=null", "data.train", None),
        ("data.train=12", "data.train", "12"),
        ("training.epochs=1_000", "training.epochs", 1000),
        ("training.learning_rate=0.5", "training.learning_rate", 0.5),
        ("data.label_column=p(=1): x", "data.label_column", "p(=1): x"),
        ("data.planted.seed=4", "data.planted.seed", 4),
    ],
)
def test_overrides_become_the_type_of_the_field(override, path, expected):
    value = load_config(None, [override])
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected and type(value) is type(expected)


def test_numbers_without_a_point_are_read_as_numbers(write):
    assert load_config(write("training: {learning_rate: 5e-5}")).training.learning_rate == 5e-5


def test_one_value_alone_is_a_list_of_one(write):
    text = "response: {methods: ae, pretraining: {orthogonality: 1, dropout: 5e-1}}\nmodel: {protein_kernels: 5}\n"
    config = load_config(write(text))
    assert config.model.protein_kernels == (5,) and config.response.methods == ("ae",)
    assert config.response.pretraining.orthogonality == (1.0,) and config.response.pretraining.dropout == (0.5,)


def test_a_section_may_be_merged_from_an_anchor(write):
    path = write("data: &d {max_atoms: 50}\n")
    assert load_config(path).data.max_atoms == 50
    path = write("data:\n  planted: {<<: {seed: 3, drugs: 30}, seed: 5}\n")
    assert load_config(path).data.planted == PlantedConfig(seed=5, drugs=30)


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: {epoch: 3}", "unknown key training.epoch in {path}; did you mean training.epochs?"),
        ("epochs: 3", "unknown key epochs in {path}; did you mean training.epochs?"),
        ("trainin: {epochs: 3}", "unknown key trainin in {path}; did you mean training?"),
        ("data: {planted: {kindd: cold}}", "unknown key data.planted.kindd in {path}; did you mean data.planted.kind?"),
        ("zzz: 1", "unknown key zzz in {path}; choose from {sections}"),
        ('"a\\nb": 2', "unknown key 'a\\nb' in {path}; choose from {sections}"),
        ("1: 2", "unknown key 1 in {path}; choose from {sections}"),
        ("data: 4", "{path}: data=4: a section is expected, with keys such as data.dataset"),
        ("training: {epochs: '3'}", "{path}: training.epochs='3': whole number expected"),
        ("training: {epochs: 3.0}", "{path}: training.epochs=3.0: whole number expected"),
        ("training: {epochs: true}", "{path}: training.epochs=True: whole number expected"),
        ("training: {epochs: null}", "{path}: training.epochs=null: whole number expected"),
        ("training: {learning_rate: .nan}", "{path}: training.learning_rate=nan: number expected"),
        ("training: {learning_rate: .inf}", "{path}: training.learning_rate=inf: number expected"),
        ("training: {learning_rate: fast}", "{path}: training.learning_rate='fast': number expected"),
        ("model: {reference: 1}", "{path}: model.reference=1: true or false expected"),
        ("output: {directory: 5}", "{path}: output.directory=5: text or null expected"),
        ("model: {protein_kernels: [3, x]}", "{path}: model.protein_kernels=[3, 'x']: list of whole numbers expected"),
        ("data: {split_fractions: [1, 2]}", "{path}: data.split_fractions=[1, 2]: list of 3 numbers expected"),
        (
            "data: {split_fractions: [1, 1, 1]}",
            "{path}: data.split_fractions=(1.0, 1.0, 1.0): three shares that sum to 1 are expected",
        ),
        ("training: {epochs: 010}", "{path}: training.epochs='010': whole number expected"),
        (
            "data: {max_atoms: 300}\nmodel: {reference: true}",
            "{path}: data.max_atoms=300: model.reference=true pads to 290 as the published code does; at most that "
            "many are expected",
        ),
        ("training: {epochs: 0}", "{path}: training.epochs=0: must be at least 1"),
        ("data: {max_rejected: 2}", "{path}: data.max_rejected=2.0: must be between 0.0 and 1.0"),
        ("training: {clip_norm: -1}", "{path}: training.clip_norm=-1.0: must be above 0"),
        ("training: {patience: 0}", "{path}: training.patience=0: must be at least 1"),
        ("training: {seed: -1}", "{path}: training.seed=-1: must be between 0 and 2147483646"),
        (
            "model: {decoder_features: []}",
            "{path}: model.decoder_features=(): one or more whole numbers above 0 are expected",
        ),
        ("task: ranking", "{path}: task='ranking': choose from classification, regression"),
        (
            "task: regression\nmodel: {logits: 2}",
            "{path}: model.logits=2 is a classification head; task=regression needs model.logits=1",
        ),
        (
            "task: regression\ntraining: {class_weight: true}",
            "{path}: training.class_weight=true weights classes, which task=regression has not",
        ),
        (
            "data: {replicates: mean}",
            "{path}: data.replicates=mean is about measured values; task=classification keeps one row of a pair",
        ),
        ("task: a\ntask: b", "{path}: line 2: not a YAML configuration (the key 'task' occurs twice)"),
        ("- task", "{path}: list found; a YAML mapping of configuration keys is expected"),
        ("task: [", "{path}: line 1: not a YAML configuration (expected the node content, but found '<stream end>')"),
        ("task: 2001-99-99", "{path}: not a YAML configuration (month must be in 1..12)"),
    ],
)
def test_a_bad_file_gives_one_line_that_names_the_key(write, text, message):
    path = write(text)
    with pytest.raises(DataError) as caught:
        load_config(path)
    sections = ", ".join(item.name for item in dataclasses.fields(Config))
    assert str(caught.value) == message.format(path=path, sections=sections)


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.epoch=3", "unknown key training.epoch in the overrides; did you mean training.epochs?"),
        ("training.epochs", "override 'training.epochs': KEY=VALUE is expected, such as training.epochs=30"),
        ("training=3", "override 'training=3': KEY=VALUE is expected, such as training.epochs=30"),
        ("training.epochs=x", "training.epochs='x': whole number expected"),
        ("training.epochs=[", "training.epochs='[': whole number expected"),
        ("training.epochs=2001-99-99", "training.epochs='2001-99-99': whole number expected"),
        ("training.epochs=0", "training.epochs=0: must be at least 1"),
        ("training.epochs=010", "training.epochs='010': whole number expected"),
        ("training.epochs=1:30", "training.epochs='1:30': whole number expected"),
        ("training.learning_rate=1:30.5", "training.learning_rate='1:30.5': number expected"),
        ("model.protein_kernels=3,010", "model.protein_kernels=[3, '010']: list of whole numbers expected"),
        (f"training.epochs={'9' * 400}", f"training.epochs={'9' * 100}...: too large a number"),
        (f"training.learning_rate={'9' * 400}", f"training.learning_rate={'9' * 100}...: too large a number"),
        ("model.reference=maybe", "model.reference='maybe': true or false expected"),
    ],
)
def test_a_bad_override_gives_one_line(override, message):
    with pytest.raises(DataError) as caught:
        load_config(None, [override])
    assert str(caught.value) == message


def test_an_override_that_does_not_fit_the_file_names_both(write):
    path = write("task: regression")
    with pytest.raises(DataError, match=r"run.yaml with the overrides: model.logits=2 is a classification head"):
        load_config(path, ["model.logits=2"])


def test_unreadable_files_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"absent.yaml: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="binary.yaml: not a text file"):
        load_config(tmp_path / "binary.yaml")


def test_a_saved_configuration_is_read_back_whole(tmp_path):
    config = load_config(
        None,
        ["task=regression", "data.table=t.csv", "model.protein_kernels=3,5", "training.clip_norm=0.1", "data.drugs=no"],
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config_from_dict(config_to_dict(config)) == config
    saved = list(yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert saved == [item.name for item in dataclasses.fields(Config)]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    save_config(Config(), path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_config(load_config(None, ["training.epochs=3"]), path)
    assert load_config(path) == Config()
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_every_field_and_section_has_a_help_text():
    fields = config_fields()
    assert all(leaf.help for leaf in fields.values()), [path for path, leaf in fields.items() if not leaf.help]
    assert fields["training.batch_size"].help == "pairs a step"
    assert all(config_sections().values())
    assert set(config_sections()) >= {"data", "data.planted", "model", "training", "response", "output"}


def test_fields_agree_with_the_dataclasses():
    tree = config_to_dict(Config())
    for path, leaf in config_fields().items():
        value = tree
        for name in path.split("."):
            value = value[name]
        assert value == (list(leaf.default) if isinstance(leaf.default, tuple) else leaf.default), path
    leaves = lambda item: sum(map(leaves, vars(item).values())) if dataclasses.is_dataclass(item) else 1
    assert len(config_fields()) == leaves(Config())


_KEYS = st.sampled_from(sorted({name for path in config_fields() for name in path.split(".")})) | st.text(max_size=5)
_VALUES = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=8)
_TREES = st.dictionaries(
    _KEYS, st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))
)


@pytest.mark.slow
@given(_TREES)
def test_any_mapping_is_a_configuration_or_a_one_line_error(tree):
    try:
        config = config_from_dict(tree, "FILE")
    except DataError as error:
        assert "\n" not in str(error) and "FILE" in str(error)
    else:
        assert config_from_dict(config_to_dict(config)) == config


@given(st.text(max_size=30))
def test_any_text_of_a_flag_is_a_value_or_a_one_line_error(text):
    for path in ("training.epochs", "training.clip_norm", "model.protein_kernels", "model.reference", "data.table"):
        try:
            load_config(None, [f"{path}={text}"])
        except DataError as error:
            assert "\n" not in str(error) and str(error).startswith(path)
