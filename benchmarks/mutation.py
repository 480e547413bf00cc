"""What the tests do not notice, by a random sample of cosmic-ray's mutants of what matters most.

    python -m venv cosmic && cosmic/bin/pip install cosmic-ray==8.7.0
    python benchmarks/mutation.py --cosmic-ray cosmic/bin/cosmic-ray [--modules journal bundle]

Python is the one that runs the tests, with the project's development dependencies. What is mutated is a
detached git worktree of a commit. A mutant is killed if a test fails or the tests take more than 150 s.
Mutants of ``|`` are left out: most lie in annotations. A module takes about ten minutes; docs/mutation.md
explains the survivors.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

# Name: (folder, modules in it, their tests, size of the sample).
MODULES = {
    "two_pass": ("export/sad_export", "two_pass", "export/test_two_pass.py", 25),
    "journal": (
        "runtime/sad_runtime/results",
        "journal finished row",
        "runtime/test_results.py runtime/test_resume.py",
        25,
    ),
    "bundle": ("runtime/sad_runtime/bundle", "read write", "runtime/bundle", 25),
    "fold": ("sad_deploy", "fold", "sad_deploy/test_fold.py", 25),
    "calibration": (
        "sad_deploy",
        "calibration saliency",
        "sad_deploy/test_calibration.py sad_deploy/test_saliency.py",
        15,
    ),
    "verify": (
        "export/sad_export",
        "verify verify_forward verify_gradient reference",
        "export/test_verify.py export/test_verify_gradient.py export/test_reference.py "
        "export/loading/test_probabilities.py export/test_job.py export/precision/test_verified.py",
        15,
    ),
    "attribution": (
        "export/sad_export",
        "attributed attribution points feature_map verify_attribution",
        "export/test_attributed.py export/test_feature_map.py export/test_verify_attribution.py",
        15,
    ),
    "rules": ("export/sad_export/gradient/rules", "*", "export/gradient", 20),
}

CONFIG = """[cosmic-ray]
module-path = {files}
timeout = 150.0
excluded-modules = []
test-command = {tests}
[cosmic-ray.distributor]
name = "local"
"""


def mutate(name: str, tree: Path, cosmic_ray: str, seed: int) -> None:
    """Run the sampled mutants of one module and print how many survived, and each survivor's diff."""
    at, modules, names, size = MODULES[name]
    tests = " ".join(f"tests/{test}" for test in names.split() if (tree / "tests" / test).exists())
    found = {file for module in modules.split() for file in (tree / at).glob(f"{module}.py")}
    files = [file.relative_to(tree).as_posix() for file in sorted(found) if file.name != "__init__.py"]
    command = f"{sys.executable} -m pytest -x -q -p no:randomly -p no:cacheprovider {tests}"
    config, session = tree / f"{name}.toml", tree / f"{name}.sqlite"
    config.write_text(CONFIG.format(files=json.dumps(files), tests=json.dumps(command)))
    packages = f"{tree}{os.pathsep}{tree / 'export'}{os.pathsep}{tree / 'runtime'}"
    environment = os.environ | {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> None:
        subprocess.run(arguments, cwd=tree, env=environment, check=True, stdout=sys.stderr)

    run(*command.split())  # tests that fail anyway would kill every mutant
    run(cosmic_ray, "init", config.name, session.name)
    with closing(sqlite3.connect(session)) as database:
        mutants = database.execute(
            "SELECT module_path, operator_name, occurrence, job_id FROM mutation_specs"
        )
        mutants = sorted(each for each in mutants if "BinaryOperator_BitOr" not in each[1])
        random.Random(seed).shuffle(mutants)
        sampled = ",".join(f"'{job}'" for *_, job in mutants[:size])
        for table in ("mutation_specs", "work_items"):
            database.execute(f"DELETE FROM {table} WHERE job_id NOT IN ({sampled})")
        database.commit()
    run(cosmic_ray, "exec", config.name, session.name)
    with closing(sqlite3.connect(session)) as database:
        survivors = database.execute(
            "SELECT module_path, start_pos_row, definition_name, diff FROM mutation_specs "
            "JOIN work_results USING (job_id) WHERE lower(test_outcome) = 'survived' ORDER BY 1, 2"
        ).fetchall()
    print(f"{name}: {len(mutants)} mutants, at most {size} run, {len(survivors)} survived", flush=True)
    for file, line, function, diff in survivors:
        print(f"\n{file}:{line} {function or ''}\n{diff}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="the program")
    parser.add_argument("--modules", nargs="+", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default="HEAD")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        git = ["git", "-C", str(Path(__file__).parent), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), options.commit], check=True)
        try:
            for name in options.modules:
                mutate(name, tree, options.cosmic_ray, options.seed)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


if __name__ == "__main__":
    main()
