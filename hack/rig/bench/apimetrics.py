"""Counts writes in what the API server tells of itself: ``apiserver_request_total``, every client's requests together.

Called by the benchmarks. Pure.
"""

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

WRITING_VERBS = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
NO_OBJECTS = frozenset({"leases", "tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews"})
"""Heartbeats, and POSTs that ask and store nothing."""


def writes(exposition: str) -> Counter[str]:
    """Write requests so far by ``VERB resource[/subresource]``, whatever their outcome; Leases are left out."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(exposition):
        if family.name not in ("apiserver_request", "apiserver_request_total"):
            continue
        for sample in family.samples:
            labels = sample.labels
            if labels["verb"] in WRITING_VERBS and labels["resource"] not in NO_OBJECTS:
                resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                found[f"{labels['verb']} {resource}"] += int(sample.value)
    return found


def describe(counts: Counter[str], per: int) -> str:
    """``PATCH botruntimes 1.00, …``: counts divided by ``per``."""
    return ", ".join(f"{name} {count / per:.2f}" for name, count in sorted(counts.items()) if count)
