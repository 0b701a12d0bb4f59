//! The SQL statements, in syntax that both engines support.
//!
//! A test prepares each of [`ALL`] on both engines. `sql.rs` builds lists with optional filters
//! from the selections here; `listing.rs` builds the list of keys.

macro_rules! key_columns {
    () => {
        "k.key_id AS k_key_id, k.tenant_id AS k_tenant_id, k.owner_id AS k_owner_id, \
         k.label AS k_label, k.description AS k_description, k.prefix AS k_prefix, \
         k.scopes AS k_scopes, k.audiences AS k_audiences, k.allowed_cidrs AS k_allowed_cidrs, \
         k.metadata AS k_metadata, k.suspended AS k_suspended, k.created_at AS k_created_at, \
         k.created_by AS k_created_by, k.expires_at AS k_expires_at, k.revoked_at AS k_revoked_at, \
         k.revoked_by AS k_revoked_by, k.revoke_reason AS k_revoke_reason, \
         k.rotated_from AS k_rotated_from, k.rotated_to AS k_rotated_to, \
         k.hash_version AS k_hash_version, k.created_revision AS k_created_revision, \
         k.revision AS k_revision"
    };
}

/// The columns of keys `k` and their last uses `u`.
macro_rules! used_key_columns {
    () => {
        concat!(
            key_columns!(),
            ", u.last_used_at AS u_last_used_at, u.last_used_ip AS u_last_used_ip"
        )
    };
}

macro_rules! owner_columns {
    () => {
        "o.tenant_id AS o_tenant_id, o.owner_id AS o_owner_id, o.scopes AS o_scopes, \
         o.audiences AS o_audiences, o.suspended AS o_suspended, \
         o.display_name AS o_display_name, o.revision AS o_revision"
    };
}

macro_rules! tenant_columns {
    () => {
        "t.tenant_id AS t_tenant_id, t.display_name AS t_display_name, \
         t.suspended AS t_suspended, \
         t.key_prefix AS t_key_prefix, t.scope_catalog AS t_scope_catalog, \
         t.default_ttl AS t_default_ttl, t.max_ttl AS t_max_ttl, \
         t.require_expiry AS t_require_expiry, \
         t.max_active_keys_per_owner AS t_max_active_keys_per_owner, \
         t.replace_oldest AS t_replace_oldest, t.require_owner AS t_require_owner, \
         t.required_owner_scope AS t_required_owner_scope, \
         t.basic_usernames AS t_basic_usernames, t.revision AS t_revision"
    };
}

/// Selects the keys of tenant `$1` that can be used at `$2`, or could be once resumed.
macro_rules! living {
    () => {
        "tenant_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)"
    };
}

/// Counts the living keys in a slice of at most `$4` keys of tenant `$1`, created after revision
/// `$3`.
macro_rules! count_living {
    ($owner:literal) => {
        concat!(
            "SELECT COUNT(*) AS looked, MAX(created_revision) AS last, \
             COALESCE(SUM(CASE WHEN ",
            living!(),
            " THEN 1 ELSE 0 END), 0) AS living \
             FROM (SELECT tenant_id, created_revision, revoked_at, expires_at FROM keys \
             WHERE tenant_id = $1 AND created_revision > $3",
            $owner,
            " ORDER BY created_revision LIMIT $4) k"
        )
    };
}

macro_rules! revoke {
    () => {
        "UPDATE keys SET revoked_at = $2, revoked_by = $3, revoke_reason = $4, revision = $5 WHERE "
    };
}

/// Selects a page of the keys that are most likely to be requested, in one row. `$hex` is the
/// engine's expression for a key's MAC in hexadecimal digits.
///
/// `$from` selects the keys and `$place` defines their order, greatest first. The page has keys at
/// places from `$7` to below `$1` that can be allowed at `$2` and recognised by pepper `$3`. The
/// comparison of the pepper is an expression that no index serves, so that the pepper's index does
/// not spoil the order, and that PostgreSQL expects most keys to match. Comparing with FALSE
/// excludes values that are not booleans, which SQLite can hold.
macro_rules! warm {
    ($writable:literal, $hex:literal, $from:literal, $place:literal) => {
        concat!(
            "SELECT ",
            $writable,
            " AS writable, (SELECT revision FROM log_head) AS head, MIN(w.place) AS last, \
             COUNT(*) AS keys, string_agg(w.line, $6) AS lines FROM (SELECT ",
            $place,
            " AS place, concat_ws($5, k.key_id, k.tenant_id, k.owner_id, k.scopes, k.audiences, \
             k.allowed_cidrs, k.metadata, COALESCE(CAST(k.expires_at AS TEXT), ''), ",
            $hex,
            ", COALESCE(o.scopes, ''), COALESCE(o.audiences, ''), \
             CASE WHEN o.suspended = FALSE THEN '' ELSE 'suspended' END, t.basic_usernames, \
             CASE WHEN t.require_owner = FALSE THEN '' ELSE 'required' END, \
             COALESCE(t.required_owner_scope, '')) AS line \
             FROM ",
            $from,
            " JOIN tenants t ON t.tenant_id = k.tenant_id \
             LEFT JOIN owners o ON o.tenant_id = k.tenant_id AND o.owner_id = k.owner_id \
             WHERE ",
            $place,
            " < $1 AND ",
            $place,
            " >= $7 AND k.revoked_at IS NULL AND k.suspended = FALSE \
             AND t.suspended = FALSE \
             AND (k.expires_at IS NULL OR k.expires_at > $2) \
             AND NOT (k.mac_pepper IS DISTINCT FROM $3) \
             ORDER BY ",
            $place,
            " DESC LIMIT $4) w"
        )
    };
}

/// Selects the keys that were used, the last used first.
macro_rules! warm_used {
    ($writable:literal, $hex:literal) => {
        warm!(
            $writable,
            $hex,
            "key_usage u JOIN keys k ON k.key_id = u.key_id",
            "u.last_used_at"
        )
    };
}

/// Selects the keys that were never used, the newest first.
macro_rules! warm_unused {
    ($writable:literal, $hex:literal) => {
        warm!(
            $writable,
            $hex,
            "(SELECT * FROM keys n WHERE NOT EXISTS \
             (SELECT 1 FROM key_usage u WHERE u.key_id = n.key_id)) k",
            "k.created_revision"
        )
    };
}

macro_rules! statements {
    ($($name:ident = $text:expr;)*) => {
        $(pub(super) const $name: &str = $text;)*
        /// Every fixed statement.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

statements! {
    POSITION = "SELECT store_id, revision FROM log_head";
    RENAME_STORE = "UPDATE log_head SET store_id = $1 RETURNING revision";
    // No replica renews a membership of that name. Its holder, if there is one, joins again, and
    // changes wait until its lease has expired.
    RENAME_REPLICAS = "UPDATE replicas SET id = 'restored-' || id";
    // Waits for the previous mutation, and changes nothing.
    LOCK = "UPDATE log_head SET revision = revision RETURNING revision";
    NEXT_REVISION = "UPDATE log_head SET revision = revision + 1 RETURNING revision";
    FIND_KEY = concat!(
        "SELECT ", used_key_columns!(),
        " FROM keys k LEFT JOIN key_usage u ON u.key_id = k.key_id WHERE k.key_id = $1"
    );
    FIND_REQUEST = "SELECT key_id FROM keys WHERE tenant_id = $1 AND request_id = $2";
    LIST_LIVING =
        concat!("SELECT key_id FROM keys WHERE ", living!(), " ORDER BY created_revision");
    LIST_LIVING_OF_OWNER = concat!(
        "SELECT key_id FROM keys WHERE ", living!(), " AND owner_id = $3 ORDER BY created_revision"
    );
    LIVING_SCOPES =
        concat!("SELECT DISTINCT scopes FROM keys WHERE ", living!(), " AND owner_id = $3");
    HAS_LIVING =
        concat!("SELECT 1 FROM keys WHERE ", living!(), " AND owner_id = $3 LIMIT 1");
    HAS_KEYS = "SELECT 1 FROM keys WHERE tenant_id = $1 LIMIT 1";
    COUNT_LIVING = count_living!("");
    COUNT_LIVING_OF_OWNER = count_living!(" AND owner_id = $5");
    REVOKE_LIVING = concat!(revoke!(), living!());
    REVOKE_LIVING_OF_OWNER = concat!(revoke!(), living!(), " AND owner_id = $6");
    INSERT_KEY =
        "INSERT INTO keys (key_id, tenant_id, owner_id, label, description, prefix, scopes, \
         audiences, allowed_cidrs, metadata, suspended, created_at, created_by, expires_at, \
         rotated_from, request_id, hash_version, secret_phc, secret_mac, mac_pepper, \
         created_revision, revision) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, \
         $18, $19, $20, $21, $22)";
    UPDATE_KEY =
        "UPDATE keys SET label = $2, description = $3, scopes = $4, audiences = $5, \
         allowed_cidrs = $6, metadata = $7, suspended = $8, expires_at = $9, revoked_at = $10, \
         revoked_by = $11, revoke_reason = $12, rotated_to = $13, revision = $14 \
         WHERE key_id = $1";
    REVOKE_KEY = concat!(revoke!(), "key_id = $1");
    REPLACE_MAC = "UPDATE keys SET secret_mac = $2, mac_pepper = $3 WHERE key_id = $1";
    JOIN =
        "INSERT INTO replicas (id, applied_revision, renewals, lease) \
         SELECT $1, revision, 0, $2 FROM log_head RETURNING applied_revision";
    RENEW =
        "UPDATE replicas SET applied_revision = $2, renewals = renewals + 1 \
         WHERE id = $1 AND $2 <= (SELECT revision FROM log_head) \
         RETURNING (SELECT revision FROM log_head) AS head";
    LEAVE = "DELETE FROM replicas WHERE id = $1";
    REMOVE_REPLICA = "DELETE FROM replicas WHERE id = $1 AND renewals = $2";
    COUNT_KEYS = "SELECT COUNT(*) FROM (SELECT 1 FROM keys LIMIT $1) k";
    COUNT_BY_PEPPER =
        "SELECT mac_pepper, COUNT(*) FROM keys \
         WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1) GROUP BY mac_pepper";
    PEPPER_CHECKS =
        "SELECT pepper_id, ordinal, argon2_until, check_value FROM peppers ORDER BY ordinal";
    INSERT_PEPPER_CHECK =
        "INSERT INTO peppers (pepper_id, ordinal, argon2_until, check_value) \
         VALUES ($1, $2, $3, $4)";
    FORGET_PEPPER_CHECKS = "DELETE FROM peppers";
    FIND_OWNER = concat!(
        "SELECT ", owner_columns!(), " FROM owners o WHERE o.tenant_id = $1 AND o.owner_id = $2"
    );
    LIST_OWNERS = concat!(
        "SELECT ", owner_columns!(), " FROM owners o WHERE o.tenant_id = $1 AND o.owner_id > $2 \
         ORDER BY o.owner_id LIMIT $3"
    );
    PUT_OWNER =
        "INSERT INTO owners (tenant_id, owner_id, scopes, audiences, suspended, display_name, \
         revision) VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (tenant_id, owner_id) DO UPDATE SET scopes = $3, audiences = $4, \
         suspended = $5, display_name = $6, revision = $7";
    COUNT_OWNERS =
        "SELECT COUNT(*) FROM (SELECT 1 FROM owners WHERE tenant_id = $1 LIMIT $2) o";
    DELETE_OWNERS = "DELETE FROM owners WHERE tenant_id = $1";
    DELETE_OWNER = "DELETE FROM owners WHERE tenant_id = $1 AND owner_id = $2";
    FIND_TENANT = concat!("SELECT ", tenant_columns!(), " FROM tenants t WHERE t.tenant_id = $1");
    PUT_TENANT =
        "INSERT INTO tenants (tenant_id, display_name, key_prefix, scope_catalog, default_ttl, \
         max_ttl, require_expiry, max_active_keys_per_owner, replace_oldest, require_owner, \
         required_owner_scope, basic_usernames, suspended, revision) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) \
         ON CONFLICT (tenant_id) DO UPDATE SET display_name = $2, key_prefix = $3, \
         scope_catalog = $4, default_ttl = $5, max_ttl = $6, require_expiry = $7, \
         max_active_keys_per_owner = $8, replace_oldest = $9, require_owner = $10, \
         required_owner_scope = $11, basic_usernames = $12, suspended = $13, revision = $14";
    DELETE_TENANT = "DELETE FROM tenants WHERE tenant_id = $1";
    INSERT_EVENT =
        "INSERT INTO events (revision, at, actor, kind, tenant_id, key_id, owner_id, details, \
         trace_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
}

/// With a single process, its row need not outlive the connection that wrote it, because without
/// the row the process joins again. All other tables of both engines are in `migrations/`.
pub const REPLICAS_OF_ONE_PROCESS: &str = "CREATE TEMP TABLE replicas (id TEXT PRIMARY KEY, \
     applied_revision INTEGER NOT NULL, renewals INTEGER NOT NULL, lease INTEGER NOT NULL)";

/// The columns of a key and its last use.
pub(super) const USED_KEY_COLUMNS: &str = used_key_columns!();
/// Selects tenants; conditions follow.
pub(super) const LIST_TENANTS: &str = concat!(
    "SELECT ",
    tenant_columns!(),
    " FROM tenants t WHERE t.tenant_id > "
);
/// Extends a condition on `events.key_id` to the change that created the key, which may be a
/// rotation of another one, and to the change that revoked it, which may have revoked others too. No
/// change of a key follows its revocation. The key's ID and `))` follow.
pub(super) const EVENTS_AROUND_KEY: &str = " OR revision IN (SELECT CASE n.n WHEN 1 \
     THEN k.created_revision ELSE k.revision END FROM keys k \
     CROSS JOIN (SELECT 1 AS n UNION ALL SELECT 2) n \
     WHERE (n.n = 1 OR k.revoked_at IS NOT NULL) AND k.key_id = ";
/// Extends a condition on `events.owner_id` to the changes that revoked keys of all owners, and
/// among them keys of this one. The owner's ID and `)))` follow.
pub(super) const EVENTS_AROUND_OWNER: &str = " OR (kind = 'keys_revoked' AND owner_id IS NULL \
     AND EXISTS (SELECT 1 FROM keys k WHERE k.tenant_id = events.tenant_id \
     AND k.revision = events.revision AND k.owner_id = ";
/// Selects events; conditions follow.
pub(super) const LIST_EVENTS: &str = "SELECT revision, at, actor, kind, tenant_id, key_id, \
     owner_id, details, trace_id FROM events WHERE revision ";
/// Inserts uses of keys; rows and [`TO_KNOWN_USES`] follow.
pub(super) const ADD_USES: &str =
    "INSERT INTO key_usage AS u (key_id, last_used_at, last_used_ip, uses) ";
/// Adds the counts of uses and keeps the later of two last uses.
pub(super) const TO_KNOWN_USES: &str = " ON CONFLICT (key_id) DO UPDATE SET \
     uses = u.uses + excluded.uses, \
     last_used_at = CASE WHEN excluded.last_used_at >= u.last_used_at \
     THEN excluded.last_used_at ELSE u.last_used_at END, \
     last_used_ip = CASE WHEN excluded.last_used_at >= u.last_used_at \
     THEN excluded.last_used_ip ELSE u.last_used_ip END";

/// The statements whose text depends on the engine. Each returns a column `writable`, which is true
/// if the statement ran on a server that takes changes. Data from a server that takes no changes
/// may be long out of date.
pub struct Dialect {
    pub head: &'static str,
    /// Loads a key with its owner and its tenant.
    pub load: &'static str,
    /// Loads the keys of a list of ids, with their owners and tenants. Returns at least one row: if
    /// there are none, its columns other than `head` are NULL.
    pub load_many: &'static str,
    /// Loads an owner with its tenant.
    pub load_owner: &'static str,
    /// Selects all members. Returns at least one row: if there are none, its columns are NULL.
    pub replicas: &'static str,
    /// Select many keys: all, the used ones, the unused ones; see `warm!`.
    pub warm: [&'static str; 3],
}

impl Dialect {
    /// Returns every statement.
    #[must_use]
    pub fn all(&self) -> Vec<&'static str> {
        let single = [
            self.head,
            self.load,
            self.load_many,
            self.load_owner,
            self.replicas,
        ];
        single.into_iter().chain(self.warm).collect()
    }
}

/// Selects the keys for which `$which` is true, with their owners and tenants, and the head.
macro_rules! load {
    ($writable:literal, $which:literal) => {
        concat!(
            "SELECT ",
            $writable,
            " AS writable, h.revision AS head, k.secret_phc, k.secret_mac, k.mac_pepper, ",
            key_columns!(),
            ", ",
            owner_columns!(),
            ", ",
            tenant_columns!(),
            " FROM log_head h LEFT JOIN keys k ON ",
            $which,
            " LEFT JOIN owners o ON o.tenant_id = k.tenant_id AND o.owner_id = k.owner_id \
             LEFT JOIN tenants t ON t.tenant_id = k.tenant_id"
        )
    };
}

macro_rules! dialect {
    ($writable:literal, $hex:literal, $listed:literal) => {
        Dialect {
            head: concat!(
                "SELECT ",
                $writable,
                " AS writable, revision AS head FROM log_head"
            ),
            load: load!($writable, "k.key_id = $1"),
            load_many: load!($writable, $listed),
            load_owner: concat!(
                "SELECT ",
                $writable,
                " AS writable, h.revision AS head, ",
                owner_columns!(),
                ", ",
                tenant_columns!(),
                " FROM log_head h JOIN tenants t ON t.tenant_id = $1 \
                 LEFT JOIN owners o ON o.tenant_id = t.tenant_id AND o.owner_id = $2"
            ),
            replicas: concat!(
                "SELECT ",
                $writable,
                " AS writable, r.id, r.applied_revision, r.renewals, r.lease \
                 FROM (SELECT 1 AS one) one LEFT JOIN replicas r ON TRUE"
            ),
            warm: [
                warm!($writable, $hex, "keys k", "k.created_revision"),
                warm_used!($writable, $hex),
                warm_unused!($writable, $hex),
            ],
        }
    };
}

/// The file is locked for this process, which is therefore always the primary.
pub const SQLITE: Dialect = dialect!(
    "TRUE",
    "hex(k.secret_mac)",
    "k.key_id IN (SELECT value FROM json_each($1))"
);
/// A standby is always read-only, as is a primary that `default_transaction_read_only` fences.
pub const POSTGRES: Dialect = dialect!(
    "(current_setting('transaction_read_only') = 'off')",
    "encode(k.secret_mac, 'hex')",
    "k.key_id = ANY($1)"
);
