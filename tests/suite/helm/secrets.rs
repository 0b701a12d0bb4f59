//! Secrets: generated ones are kept, existing ones are used.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value as Json, json};

use super::{Release, options::minimal, release, release_into, text, variable};

#[test]
fn secrets_are_generated_at_the_first_install_and_kept_by_every_upgrade() {
    let mut values = minimal();
    values["tls"] = json!({"enabled": true});
    let data = |release: &Release| -> BTreeMap<String, Json> {
        let secrets = release.all("Secret").into_iter();
        let data = secrets.map(|it| {
            let policy = &it["metadata"]["annotations"]["helm.sh/resource-policy"];
            assert_eq!(policy, "keep");
            (text(&it["metadata"]["name"]).to_owned(), it["data"].clone())
        });
        data.collect()
    };
    let first = release_into(&[], &values);
    let generated = data(&first);
    assert_eq!(
        generated.keys().collect::<Vec<_>>(),
        ["release-gatekey", "release-gatekey-tls"]
    );

    // Another install makes others: they are random.
    let other = data(&release_into(&[], &values));
    for (secret, key) in [
        ("release-gatekey", "admin-token"),
        ("release-gatekey", "pepper"),
        ("release-gatekey-tls", "ca.crt"),
        ("release-gatekey-tls", "tls.crt"),
        ("release-gatekey-tls", "tls.key"),
    ] {
        let of = |data: &BTreeMap<String, Json>| {
            let bytes = BASE64_STANDARD.decode(text(&data[secret][key]));
            bytes.expect("data of a Secret is base64")
        };
        assert!(of(&generated).len() > 40, "{key}");
        assert_ne!(of(&generated), of(&other), "{key}");
    }

    // An upgrade finds them.
    let cluster = first.all("Secret").into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(data(&release_into(&cluster, &values)), generated);

    // One that is missing is made, and the others stay.
    let mut older = cluster.clone();
    for secret in &mut older {
        secret["data"]
            .as_object_mut()
            .expect("data")
            .remove("pepper");
    }
    let upgraded = data(&release_into(&older, &values));
    let (before, after) = (&generated["release-gatekey"], &upgraded["release-gatekey"]);
    assert_eq!(after["admin-token"], before["admin-token"]);
    assert_ne!(after["pepper"], before["pepper"]);
    assert_eq!(
        upgraded["release-gatekey-tls"],
        generated["release-gatekey-tls"]
    );
}

#[test]
fn secrets_that_are_there_are_used_and_none_is_generated() {
    let mut values = minimal();
    values["adminToken"] = json!({"existingSecret": "mine", "key": "token"});
    values["pepper"] = json!({"existingSecret": "mine", "key": "peppers"});
    values["tls"] =
        json!({"enabled": true, "existingSecret": "mine", "clientCa": {"existingSecret": "ca"}});
    let release = release(values);
    assert_eq!(release.all("Secret").len(), 0);
    let sources = &release.pod()["spec"]["volumes"][0]["projected"]["sources"];
    let item = |secret: &str, items: Json| json!({"secret": {"name": secret, "items": items}});
    let tls = json!([{"key": "tls.crt", "path": "tls.crt"}, {"key": "tls.key", "path": "tls.key"}]);
    let expected = json!([
        item("mine", json!([{"key": "token", "path": "admin-token"}])),
        item("mine", json!([{"key": "peppers", "path": "pepper"}])),
        item("mine", tls),
        item("ca", json!([{"key": "ca.crt", "path": "client-ca.crt"}])),
    ]);
    assert_eq!(sources, &expected);
    // And they are where the server looks for them.
    let mounts = release.server()["volumeMounts"].as_array().expect("mounts");
    let folder = mounts
        .iter()
        .find(|it| it["name"] == "secrets")
        .expect("mounted");
    for (setting, file) in [
        ("GATEKEY_ADMIN_TOKEN_FILE", "admin-token"),
        ("GATEKEY_PEPPER_FILE", "pepper"),
        ("GATEKEY_TLS_CERT_FILE", "tls.crt"),
        ("GATEKEY_TLS_KEY_FILE", "tls.key"),
        ("GATEKEY_TLS_CLIENT_CA_FILE", "client-ca.crt"),
    ] {
        let path = format!("{}/{file}", text(&folder["mountPath"]));
        assert_eq!(variable(release.server(), setting), path);
    }
}
