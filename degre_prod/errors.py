"""Every error the project raises on purpose. Each names what is wrong and what would be right."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class DegreError(Exception):
    """Base of all our errors; the command line prints its message and exits with 2."""


class ConfigurationError(DegreError):
    """A configuration key or value that cannot be used; names itself and the valid ones."""


class SchemaError(DegreError):
    """A data set's schema.yaml that is malformed or contradicts itself."""


class DataError(DegreError):
    """Input data that breaks the contract.

    `file`, `row` (0-based), `column` and `rule` say where and why; any may be None when it does not apply.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        column: str | None = None,
        rule: str | None = None,
    ) -> None:
        self.file, self.row, self.column, self.rule = file, row, column, rule
        where = ", ".join(
            f"{name} {value}"
            for name, value in (("file", file), ("row", row), ("column", column), ("rule", rule))
            if value is not None
        )
        super().__init__(f"{message} ({where})" if where else message)


class FeatureError(DegreError):
    """The feature store cannot give what the schema declares."""


class MismatchError(DegreError):
    """An artefact was made from other inputs than the ones at hand (hashes differ)."""


class BundleError(DegreError):
    """A bundle that must not serve: a file changed, is missing, or its warm-up answers differ."""


class ConstraintError(DegreError):
    """A list that breaks a constraint, or a request for which no list can hold one."""


class TrainingError(DegreError):
    """Training that cannot go on: non-finite loss, no data, a lost worker."""


class ServiceError(DegreError):
    """The service refused or could not be reached; `status` is the HTTP status or None, `problem` its document."""

    def __init__(self, message: str, *, status: int | None = None, problem: dict[str, object] | None = None) -> None:
        self.status, self.problem = status, problem or {}
        super().__init__(message)


class JobError(DegreError):
    """A job on a cluster that failed, was stopped, or is not there."""


def explain(error: ValidationError) -> str:
    """What pydantic found, on one line: `objectives.0.weight: Input should be …; item: …`."""
    return "; ".join(
        ": ".join(part for part in (".".join(map(str, problem["loc"])), problem["msg"]) if part)
        for problem in error.errors()
    )
