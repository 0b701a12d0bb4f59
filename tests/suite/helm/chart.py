"""Renders the chart with Helm's own code and validates the objects with the schemas of Kubernetes and of operators.

Reads JSON requests, one per line: `chart` (a folder), `values`, `cluster` (the objects in the cluster, or null to
render without a cluster), and `validate`. Answers each with a line:

- `refused`: the reason why Helm would not deploy it, or, if `validate` is true:
  `objects`; `notes`; `faults`: complaints of Helm's linter and of the schemas; `unknown`: kinds without a schema.
"""

import functools
import http.server
import importlib
import json
import sys
import threading

import helm_python as helm
import kubernetes_validate
import yaml

# Otherwise it reads its schemas, 2 MB per version, again for each object.
kubernetes_validate.utils.schema_contents = functools.lru_cache(kubernetes_validate.utils.schema_contents)

# From the oldest that Chart.yaml allows to the newest that kubernetes-validate has.
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
# The models of custom resources, by API group.
MODELS = {
    "monitoring.coreos.com": "cloudcoil.models.prometheus_operator.v1",
    "cert-manager.io": "cloudcoil.models.cert_manager.v1",
}
WARNING = 2


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice, as Kubernetes does."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a key twice among {keys}")
        return super().construct_mapping(node, deep)


class Cluster(http.server.BaseHTTPRequestHandler):
    """As much of Kubernetes' API as Helm's `lookup` of a Secret asks for; the client is Helm's own."""

    objects = {}
    SECRETS = {"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get"]}

    def do_GET(self):
        path = self.path.split("?")[0]
        found = {
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [self.SECRETS]},
            **self.objects,
        }.get(path)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def render(chart, values, cluster):
    names = {"name": "release", "namespace": "space"}
    if cluster is None:
        return chart.render(values, **names)
    Cluster.objects = {
        f"/api/v1/namespaces/{it['metadata']['namespace']}/secrets/{it['metadata']['name']}": it for it in cluster
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with helm.Config(kube_apiserver=f"http://127.0.0.1:{server.server_port}", namespace="space") as config:
            return config.render(chart, values, **names)
    finally:
        server.shutdown()
        server.server_close()


def answer(request):
    with helm.Chart.load(request["chart"]) as chart:
        try:
            rendered = render(chart, request["values"], request["cluster"])
        except (helm.HelmValuesError, helm.HelmRenderError) as error:
            return {"refused": str(error)}
    if not request["validate"]:
        return {}

    report = helm.lint(request["chart"], request["values"], strict=True)
    faults = report["errors"] + [it["error"] for it in report["messages"] if it["severity"] >= WARNING]
    notes, objects, unknown = "", [], set()
    for path, text in rendered.items():
        if path.endswith("NOTES.txt"):
            notes = text
            continue
        for it in filter(None, yaml.load_all(text, Loader=StrictLoader)):
            objects.append(it)
            found = validate(json.dumps(it))
            if found is None:
                unknown.add(it["kind"])
            faults += [f"{path}, {fault}" for fault in found or []]
    return {"objects": objects, "notes": notes, "faults": faults, "unknown": sorted(unknown)}


@functools.cache
def validate(text):
    """Returns what the schemas have against an object, or None if there is no schema for it."""
    it = json.loads(text)
    group = it["apiVersion"].partition("/")[0]
    if group in MODELS:
        return validate_custom(it, importlib.import_module(MODELS[group]))
    faults = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(it, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            return None
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            faults.append(f"Kubernetes {version}: {where}: {error.message}")
    return faults


def validate_custom(it, models):
    """The models ignore unknown fields; these show as fields that a round trip loses."""
    try:
        model = getattr(models, it["kind"]).model_validate(it)
    except ValueError as error:
        return [f"{it['kind']}: {error}"]
    kept = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return [] if kept == it else [f"{it['kind']}: unknown fields: {it} became {kept}"]


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
