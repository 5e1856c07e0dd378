"""What GitHub Actions and Kubernetes take, as far as docs/nightly-recipes.md and .github use it: names and values of
fields, from GitHub's "Workflow syntax" and Kubernetes' pkg/apis/batch. Look up what is not here, and add it."""

from typing import Any

import yaml
from kuberay import COUNT, NAME, POSITIVE, of_fields

CRON = {"pattern": r"^([\d*/,-]+ ){4}[\d*/,-]+$"}

WORKFLOW = of_fields(
    """name on schedule cron workflow_dispatch push branches tags pull_request concurrency group cancel-in-progress
    needs environment runs-on timeout-minutes strategy fail-fast if steps uses run shell""",
    "jobs env with permissions matrix",
    {"cron": CRON, "uses": {"pattern": r"^[\w.-]+/[\w./-]+@[\w.-]+$"}, "timeout-minutes": POSITIVE},
)

CRON_JOB = of_fields(
    """apiVersion kind metadata name spec schedule concurrencyPolicy jobTemplate backoffLimit podFailurePolicy rules
    action onExitCodes containerName operator values template restartPolicy containers image workingDir command args
    resources volumeMounts mountPath volumes persistentVolumeClaim claimName""",
    "limits requests",
    {
        "apiVersion": {"const": "batch/v1"},
        "kind": {"const": "CronJob"},
        "name": NAME,
        "schedule": CRON,
        "backoffLimit": COUNT,
        "concurrencyPolicy": {"enum": ["Allow", "Forbid", "Replace"]},
        "action": {"enum": ["FailJob", "Ignore", "Count"]},
        "operator": {"enum": ["In", "NotIn"]},
        "values": {"items": {"not": {"const": 0}}},
        "restartPolicy": {"const": "Never"},  # Always is refused for jobs, OnFailure beside a pod failure policy
    },
)


def workflow(text: str) -> dict[str, Any]:
    """A workflow of GitHub Actions; YAML 1.1 reads its key `on` as true."""
    return {"on" if key is True else key: value for key, value in yaml.safe_load(text).items()}
