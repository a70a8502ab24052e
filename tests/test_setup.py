"""Set-up scripts: the interpreter search, path.sh, the pinned set and check_setup."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from espnet_ext.bin import check_setup
from espnet_ext.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\n{text}\n")
    path.chmod(0o755)
    return path


def find_python(**env):
    return subprocess.run(
        [BASH, ROOT / "local/find_python.sh"], env=env, capture_output=True, text=True
    )


def test_find_python_passes_over_a_shim_that_does_not_run(tmp_path):
    shim = executable(tmp_path / "bin/python3.12", "echo 'python3.12: command not found'; exit 127")
    versions = tmp_path / ".pyenv/versions"
    real = executable(versions / "3.12.1/bin/python3", f'exec "{sys.executable}" "$@"')
    found = find_python(PATH=str(shim.parent), HOME=str(tmp_path))
    assert found.returncode == 0, found.stderr
    path = Path(found.stdout.strip())
    assert path not in (shim, real)
    assert path.samefile(sys._base_executable)


@pytest.mark.parametrize("answer", ["exit 127", "echo 3.11; exit 1"], ids=["broken", "old"])
def test_find_python_refuses_a_named_python_that_does_not_fit(tmp_path, answer):
    bad = executable(tmp_path / "a folder/python", answer)
    found = find_python(PATH="/usr/bin:/bin", HOME=str(tmp_path), PYTHON=str(bad))
    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1
    assert "3.12 or 3.13" in found.stderr and str(bad) in found.stderr


def source_path_sh(root, cwd):
    command = '. "$1/path.sh" && printf "%s\\n" "${PATH%%:*}" "${PYTHONPATH}" "${OMP_NUM_THREADS}"'
    return subprocess.run(
        [BASH, "-euc", command, "bash", root],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_path_sh_says_what_to_run_without_an_environment(tmp_path):
    shutil.copy(ROOT / "path.sh", tmp_path)
    sourced = source_path_sh(tmp_path, tmp_path)
    assert sourced.returncode == 1
    assert sourced.stderr.splitlines()[-1].endswith("run: make setup")


def test_path_sh_works_from_any_directory(tmp_path):
    root = tmp_path / "a repository"
    recipe = root / "egs2/some/asr1"
    recipe.mkdir(parents=True)
    shutil.copy(ROOT / "path.sh", root)
    executable(root / ".venv/bin/python", "exit 0")
    for given, cwd in [(root, recipe), (Path("../../.."), recipe), (Path("."), root)]:
        sourced = source_path_sh(given, cwd)
        assert sourced.returncode == 0, sourced.stderr
        assert sourced.stdout.splitlines() == [f"{root}/.venv/bin", str(root), "1"]


def test_every_target_of_make_has_commands():
    targets = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0 and "Nothing to be done" not in done.stdout, target


def test_constraints_pin_exact_versions_and_name_no_host():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    names = [pin.name.lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) and not pin.url for pin in pins)
    wanted = {
        "espnet": "202611",
        "torch": "2.14.1",
        "torchaudio": "2.11.0",
        "sentencepiece": "0.2.1",
    }
    assert wanted.items() <= {pin.name: str(pin.specifier)[2:] for pin in pins}.items()


def test_check_versions_names_each_wrong_package(tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "# pins\n"
        "sentencepiece==0.0.1\n"
        "no-such-package-here==1.0\n"
        'not-on-this-platform==1.0 ; sys_platform == "none"\n'
        f"pytest=={pytest.__version__}\n"
    )
    with pytest.raises(UserError) as error:
        check_setup.check_versions(constraints)
    for part in ("sentencepiece", "==0.0.1", "no-such-package-here missing", "run: make setup"):
        assert part in str(error.value)
    assert "not-on-this-platform" not in str(error.value)
    assert "pytest" not in str(error.value)


def test_check_setup_prints_one_line_per_check(capsys, monkeypatch):
    from espnet_ext.attention import ATTENTIONS

    with pytest.raises(SystemExit) as end:
        check_setup.main([])
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if not line.startswith("ok ")]
    assert end.value.code == bool(failed)
    assert all(line.split()[1] == "versions" for line in failed), failed
    for name in ATTENTIONS:
        assert sum(f"attention {name} " in line for line in lines) >= 1

    def broken():
        raise OSError("no sound\nlibrary")

    monkeypatch.setattr(check_setup, "check_audio", broken)
    with pytest.raises(SystemExit) as end:
        check_setup.main([])
    again = capsys.readouterr().out.splitlines()
    assert end.value.code == 1
    assert len(again) == len(lines)
    assert [line for line in again if "no sound library" in line][0].startswith("FAIL")
