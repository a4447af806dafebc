"""Finds keys and passwords in what would leave this machine with the code: detect-secrets' own patterns, and a few more."""

import functools
import re
from collections.abc import Iterable
from typing import Any

from salad.errors import SaladError

ALLOWED = "pragma: allowlist secret"  # detect-secrets' own word for a line that a person has looked at
MORE = {  # kinds that detect-secrets lacks
    "Hugging Face Token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "Google API Key": re.compile(r"\bAIza[\w-]{35}\b"),
    "Anthropic API Key": re.compile(r"\bsk-ant-[\w-]{20,}"),
    "GitHub Token": re.compile(r"\bgithub_pat_\w{40,}"),
    "Secret Keyword": re.compile(r"""(?i)(?:token|api_?key|access_?key)\w*["']?\s*[:=]\s*["'][\w.+/=-]{16,}["']"""),
}
DETECTORS = (
    "ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "CloudantDetector",
    "DiscordBotTokenDetector", "GitHubTokenDetector", "GitLabTokenDetector", "IbmCloudIamDetector", "IbmCosHmacDetector",
    "JwtTokenDetector", "KeywordDetector", "MailchimpDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector",
    "PypiTokenDetector", "SendGridDetector", "SlackDetector", "SoftlayerDetector", "SquareOAuthDetector", "StripeDetector",
    "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip


def refuse(diff: bytes) -> None:
    """SaladError in one line where an added line of a git diff looks like a key or a password; its value is not shown."""
    secrets = [f"{name}:{line} ({kind})" for name, line, kind in find(diff)]
    if secrets:
        raise SaladError(
            f"what looks like a key or a password would be recorded with the run's code: {', '.join(secrets[:5])}"
            f"{' …' if len(secrets) > 5 else ''}; move it into an environment variable that the target's `env` names, or end "
            f"the line with `# {ALLOWED}` where it is none"
        )


def find(diff: bytes) -> list[tuple[str, int, str]]:
    """(file, line, kind) of every added line of a git diff with `--unified=0` that looks like a secret."""
    secrets, name, number = [], "", 0
    in_header = False
    for line in diff.decode(errors="replace").split("\n"):
        if line.startswith("diff --git "):
            in_header = True
        elif in_header and line.startswith("+++ "):
            name = line.removeprefix("+++ ").strip().strip('"').removeprefix("b/")
        elif hunk := re.match(r"@@ -\S+ \+(\d+)", line):
            in_header, number = False, int(hunk[1])
        elif not in_header and line.startswith("+"):
            kind = kind_of(name, line[1:])
            if kind:
                secrets.append((name, number, kind))
            number += 1
    return secrets


def kind_of(name: str, line: str) -> str | None:
    """What kind of secret a line of file `name` looks like; None for none, or where a person has allowed it."""
    if ALLOWED in line:
        return None
    for kind, pattern in MORE.items():
        if pattern.search(line):
            return kind
    from detect_secrets.filters import heuristic

    for detector in _detectors():
        for secret in detector.analyze_line(filename=name, line=line, line_number=0):
            value = secret.secret_value or ""
            placeholder = detector.secret_type == "Secret Keyword" and (  # pragma: allowlist secret
                heuristic.is_templated_secret(value)
                or heuristic.is_prefixed_with_dollar_sign(value)
                or heuristic.is_not_alphanumeric_string(value)
                or heuristic.is_indirect_reference(line)
            )
            if not placeholder:
                return detector.secret_type
    return None


@functools.cache
def _detectors() -> list[Any]:
    """One instance of each detector that is used."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    classes: Iterable[type] = get_mapping_from_secret_type_to_class().values()
    return [detector() for detector in classes if detector.__name__ in DETECTORS]
