"""What GitHub Actions and Kubernetes take, as far as docs/nightly-recipes.md and .github use it: JSON schemas by hand.

Unknown keys are errors. Written from GitHub's "Workflow syntax", and from Kubernetes' types in
staging/src/k8s.io/api/batch/v1/types.go with what pkg/apis/batch/validation refuses of pod failure policies. A key that
is not here is not forbidden there: look it up, and add it.
"""

from typing import Any

import yaml
from kuberay import COUNT, NAME, QUANTITY, each, exact

TEXT = {"type": "string", "minLength": 1}
CRON = {"type": "string", "pattern": r"^([\d*/,-]+ ){4}[\d*/,-]+$"}

RUN = exact("run", name=TEXT, run=TEXT, shell=TEXT, env={"type": "object"}, **{"if": TEXT})
USES = exact(
    "uses",
    name=TEXT,
    uses={"type": "string", "pattern": r"^[\w.-]+/[\w./-]+@[\w.-]+$"},
    **{"if": TEXT, "with": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}},
)
WORKFLOW = exact(
    "on jobs",
    name=TEXT,
    on=exact(
        "",
        schedule=each(exact("cron", cron=CRON)),
        workflow_dispatch={"type": ["null", "object"]},
        push=exact("branches", branches=each(TEXT)),
        pull_request=exact(""),
    ),
    concurrency=TEXT,
    permissions={"type": "object", "additionalProperties": {"enum": ["read", "write", "none"]}},
    jobs={
        "type": "object",
        "minProperties": 1,
        "additionalProperties": exact(
            "runs-on steps",
            env={"type": "object", "additionalProperties": TEXT},
            strategy=exact(
                "matrix",
                matrix={"type": "object", "additionalProperties": each(TEXT)},
                **{"fail-fast": {"type": "boolean"}},
            ),
            steps=each({"oneOf": [RUN, USES]}),
            **{"runs-on": {"anyOf": [TEXT, each(TEXT)]}, "timeout-minutes": COUNT, "if": TEXT},
        ),
    },
)


def workflow(text: str) -> dict[str, Any]:
    """A workflow of GitHub Actions; YAML 1.1 reads its key `on` as true."""
    return {"on" if key is True else key: value for key, value in yaml.safe_load(text).items()}


TEXT_INPUT = exact(
    "type id attributes",
    type={"const": "textarea"},
    id={"type": "string", "pattern": r"^[\w-]+$"},
    attributes=exact("label", label=TEXT, description=TEXT, render=TEXT),
    validations={"const": {"required": True}},
)
ISSUE_FORM = exact("name description body", name=TEXT, description=TEXT, body=each(TEXT_INPUT))
"""From GitHub's "Syntax for GitHub's form schema"."""

AMOUNTS = {"type": "object", "additionalProperties": {"anyOf": [QUANTITY, COUNT]}}
CONTAINER = exact(
    "name image",
    name=NAME,
    image=TEXT,
    workingDir={"type": "string", "pattern": "^/"},
    command=each(TEXT),
    args=each(TEXT),
    resources=exact("", limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=each(exact("name mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"})),
)
POD = exact(
    "containers restartPolicy",
    restartPolicy={"const": "Never"},  # Always is refused for jobs, OnFailure beside a pod failure policy
    containers=each(CONTAINER),
    volumes=each(exact("name", name=NAME, persistentVolumeClaim=exact("claimName", claimName=NAME))),
)
EXIT_CODES = exact(
    "operator values",
    containerName=NAME,
    operator={"enum": ["In", "NotIn"]},
    values=each({"type": "integer", "not": {"const": 0}}) | {"uniqueItems": True},
)
RULE = exact("action onExitCodes", action={"enum": ["FailJob", "Ignore", "Count"]}, onExitCodes=EXIT_CODES)
JOB = exact(
    "template", backoffLimit=COUNT, podFailurePolicy=exact("rules", rules=each(RULE)), template=exact("spec", spec=POD)
)
CRON_JOB = exact(
    "apiVersion kind metadata spec",
    apiVersion={"const": "batch/v1"},
    kind={"const": "CronJob"},
    metadata=exact("name", name=NAME | {"maxLength": 52}),  # Kubernetes adds 11 characters for the names of jobs
    spec=exact(
        "schedule jobTemplate",
        schedule=CRON,
        concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
        jobTemplate=exact("spec", spec=JOB),
    ),
)
