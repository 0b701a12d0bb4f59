//! Memory and threads follow from the size of the cache, the cores and the cost of a hash.

use serde_json::json;

use super::{options::minimal, release, variable};

#[test]
fn memory_and_threads_follow_from_the_cache_and_the_cores() {
    // 128 MiB, 320 bytes a key, 19 MiB a core.
    for (keys, cores, memory) in [
        (1_000_000, 2, "472Mi"),
        (10_000_000, 4, "3256Mi"),
        (1, 1, "148Mi"),
        (3_276_800, 1, "1147Mi"),
        (3_276_801, 1, "1148Mi"),
    ] {
        let mut values = minimal();
        values["cores"] = json!(cores);
        values["config"] = json!({"cacheKeys": keys});
        let release = release(values);
        let server = release.server();
        let resources = json!({
            "requests": {"cpu": "500m", "memory": memory},
            "limits": {"cpu": cores, "memory": memory},
        });
        assert_eq!(server["resources"], resources);
        assert_eq!(variable(server, "GATEKEY_CACHE_KEYS"), keys.to_string());
        assert_eq!(variable(server, "GATEKEY_WORKERS"), cores.to_string());
        let warm = keys.min(100_000).to_string();
        assert_eq!(variable(server, "GATEKEY_WARM_KEYS"), warm);
    }
    // A cheaper hash saves nothing, because older keys keep theirs.
    for (argon2, memory) in [
        ("m=1024,t=1,p=1", "472Mi"),
        ("m=19457,t=2,p=1", "474Mi"),
        ("m=65536,t=1,p=4", "562Mi"),
    ] {
        let mut values = minimal();
        values["config"] = json!({"argon2": argon2});
        let release = release(values);
        let server = release.server();
        assert_eq!(server["resources"]["limits"]["memory"], memory, "{argon2}");
        assert_eq!(variable(server, "GATEKEY_ARGON2"), argon2);
    }
}
