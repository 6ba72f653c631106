import pytest
from monai.bundle import ConfigWorkflow

from custom.errors import UserError


def _workflow(tmp_path, text: str = "", **overrides):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "configs" / "run.yaml").write_text(
        "eta: 0.3\n"
        "initialize: ['$@checks']\n"
        "run: ['$print(@eta)']\n"
        "checks: {_target_: custom.config.check_config}\n" + text
    )
    return ConfigWorkflow(str(tmp_path / "configs" / "run.yaml"), **overrides)


def _causes(error: BaseException) -> list[str]:
    return [] if error is None else [str(error), *_causes(error.__cause__)]


@pytest.mark.parametrize(
    ("unknown", "message"),
    [({"etaa": 0.9}, "--etaa: did you mean --eta?"), ({"zzz": 1}, "--zzz is not a key of this bundle's configs.")],
)
def test_unknown_setting_is_refused_with_the_nearest_known_one(tmp_path, unknown, message):
    with pytest.raises(RuntimeError) as caught:
        _workflow(tmp_path, **unknown).initialize()
    assert any(message in cause for cause in _causes(caught.value))


def test_several_unknown_settings_are_listed_together(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        _workflow(tmp_path, etaa=1, zzz=1).initialize()
    (text,) = [cause for cause in _causes(caught.value) if "unknown setting" in cause]
    assert text.count("\n  - ") == 2


def test_known_settings_and_referenced_helpers_pass(tmp_path):
    _workflow(tmp_path, eta="$@helper * 2", helper=0.2).initialize()


def test_user_error_lists_its_problems():
    assert str(UserError("file.json:", ["first", "second"])) == "file.json:\n  - first\n  - second"


def test_a_bundle_newer_than_the_code_does_not_run(tmp_path):
    workflow = _workflow(tmp_path)
    workflow.parser.read_meta({"version": "99.0.0"})
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    assert any("the bundle is version 99.0.0, newer than the code" in cause for cause in _causes(caught.value))
