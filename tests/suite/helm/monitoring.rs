//! Alerts and the dashboard.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::{copy, options::minimal, release_of, text};

#[test]
fn alert_rules_and_a_dashboard_in_the_chart_are_deployed_as_they_are() {
    let folder = TempDir::new().expect("a temporary folder");
    let chart = copy(folder.path());
    // Their braces are Prometheus' and Grafana's, not Helm's.
    let rules = "groups:\n  - name: gatekey\n    rules:\n      - alert: Down\n        expr: up == 0\n        \
                 annotations:\n          summary: '{{ $labels.pod }} is down'\n";
    let dashboard = "{\n  \"title\": \"gatekey\",\n  \"legend\": \"{{pod}}\"\n}\n";
    fs::write(chart.join("files/rules.yaml"), rules).expect("the copy takes files");
    fs::write(chart.join("files/dashboard.json"), dashboard).expect("the copy takes files");
    let mut values = minimal();
    values["prometheusRule"] = json!({"enabled": true, "labels": {"release": "prometheus"}});
    values["dashboard"] = json!({"enabled": true});
    let release = release_of(&chart, &values);
    let rule = release.the("PrometheusRule");
    let alert = &rule["spec"]["groups"][0]["rules"][0];
    assert_eq!(alert["annotations"]["summary"], "{{ $labels.pod }} is down");
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    let map = release.the("ConfigMap");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(text(&map["data"]["gatekey.json"]).trim(), dashboard.trim());
}
