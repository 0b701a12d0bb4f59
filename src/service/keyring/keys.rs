//! Issues, rotates, changes, revokes and reads keys.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Keyring, Lane, Stage,
    admission::{admit_extension, admit_new, admit_revival, admit_rotation},
    admit_change, admit_grant, admit_key, admit_revision, change,
    detail::{changed, of_ids, of_key, of_scopes, of_time},
    key_in_view,
    patch::KeyPatch,
    tenant_in,
};
use crate::{
    domain::{
        caller::{Action, Caller, TenantSet},
        clock::Timestamp,
        event::{Change, Details, EventKind},
        key::{HASH_VERSION, Key, Revocation, Verifier},
        page::Page,
        scope::Scopes,
        token::{KeyId, Plaintext},
    },
    service::{
        context::CallContext,
        error::{ServiceError, authorize, obey},
        failpoint::Failpoint,
    },
    store::{KeyQuery, Listed, Mutation},
};

/// Maximum number of key ids in an event, because event readers accept messages of at most 4 MiB.
/// The remaining keys can be found by tenant, owner and the event's revision, which each of them
/// carries.
const TOLD_MAX: usize = 10_000;

/// Maximum number of keys that a dry run counts.
const COUNT_MAX: usize = 100_000;

/// The properties of a new key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewKey {
    pub tenant_id: String,
    pub owner_id: String,
    pub label: String,
    pub description: String,
    pub scopes: Scopes,
    pub audiences: Vec<String>,
    pub allowed_cidrs: Vec<IpNet>,
    pub metadata: BTreeMap<String, String>,
    pub lifetime: Option<Lifetime>,
    /// Makes a retry of the call safe.
    pub request_id: Option<String>,
}

/// The lifetime of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    Until(Timestamp),
    For(Duration),
}

/// The parameters of a rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rotation {
    /// Time for which the old key stays valid, unless it expires earlier.
    pub overlap: Duration,
    /// `None`: the old key's lifetime, from its creation to its expiry.
    pub lifetime: Option<Lifetime>,
}

/// A new key with its plaintext, which only one response contains.
#[derive(Debug)]
pub struct Issued {
    pub key: Key,
    pub plaintext: Plaintext,
    /// `true` if other keys were revoked to stay within the limit.
    pub replaced: bool,
}

/// The result of RevokeKeys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revoked {
    pub count: usize,
    /// `None`: nothing was changed.
    pub revision: Option<i64>,
    /// The revision by which all the keys were revoked, at the latest.
    pub since: i64,
}

impl Keyring {
    /// Issues a key.
    ///
    /// # Errors
    /// [`ServiceError::RequestRepeated`], a violated tenant rule, and the errors common to all calls.
    pub async fn create(&self, context: &CallContext, new: NewKey) -> Result<Issued, ServiceError> {
        authorize(&context.caller, &new.tenant_id, Action::KeysCreate)?;
        admit_grant(&context.caller, &new.tenant_id, &new.scopes)?;
        let minted = self.mint(context, &new.tenant_id).await?;

        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        // Checked again, because permissions may have changed while Argon2 ran.
        authorize(caller, &new.tenant_id, Action::KeysCreate)?;
        admit_grant(caller, &new.tenant_id, &new.scopes)?;
        if let Some(request_id) = &new.request_id
            && let Some(first) = mutation.find_request(&new.tenant_id, request_id).await?
        {
            return Err(ServiceError::RequestRepeated(first));
        }
        let now = self.clock.now();
        let tenant = tenant_in(&mut *mutation, &new.tenant_id).await?;
        let wanted = new.lifetime.map(|lifetime| lifetime.from(now));
        let key = Key {
            expires_at: tenant.expiry(now, wanted),
            key_id: minted.key_id,
            tenant_id: new.tenant_id,
            owner_id: new.owner_id,
            label: new.label,
            description: new.description,
            prefix: minted.prefix,
            scopes: new.scopes,
            audiences: new.audiences,
            allowed_cidrs: new.allowed_cidrs,
            metadata: new.metadata,
            suspended: false,
            created_at: now,
            created_by: caller.actor.clone(),
            revoked: None,
            rotated_from: None,
            rotated_to: None,
            last_used: None,
            hash_version: HASH_VERSION.to_owned(),
            created_revision: mutation.revision(),
            revision: mutation.revision(),
            unreadable: false,
        };
        let replaced = admit_new(&mut *mutation, caller, &tenant, &key).await?;
        mutation
            .insert_key(&key, &minted.verifier, new.request_id.as_deref())
            .await?;

        let mut event = key_change(caller, now, EventKind::KeyCreated, &key);
        event.details = issued_details(&key, &replaced);
        self.commit(context, mutation, event).await?;
        Ok(Issued {
            key,
            plaintext: minted.plaintext,
            replaced: !replaced.is_empty(),
        })
    }

    /// Issues the successor of a key, with the same owner, scopes and limits.
    ///
    /// # Errors
    /// The reason why the key cannot be rotated, a violated tenant rule, and the errors common to
    /// all calls.
    pub async fn rotate(
        &self,
        context: &CallContext,
        tenant: Option<&str>,
        id: KeyId,
        rotation: Rotation,
    ) -> Result<Issued, ServiceError> {
        let old = self
            .find_key(&context.caller, tenant, id, Action::KeysRotate)
            .await?;
        let minted = self.mint(context, &old.tenant_id).await?;

        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        let now = self.clock.now();
        let mut old = key_in_view(&mut *mutation, caller, tenant, id, Action::KeysRotate).await?;
        admit_change(caller, &old.tenant_id, &old.scopes)?;
        admit_rotation(&old, now)?;
        let rules = tenant_in(&mut *mutation, &old.tenant_id).await?;
        let wanted = match rotation.lifetime {
            Some(lifetime) => Some(lifetime.from(now)),
            None => old.expires_at.map(|at| now.after(at.since(old.created_at))),
        };

        let new = Key {
            key_id: minted.key_id,
            prefix: minted.prefix,
            created_at: now,
            created_by: caller.actor.clone(),
            expires_at: wanted,
            rotated_from: Some(old.key_id),
            last_used: None,
            created_revision: mutation.revision(),
            revision: mutation.revision(),
            ..old.clone()
        };
        let end = now.after(rotation.overlap);
        old.expires_at = Some(old.expires_at.map_or(end, |at| at.min(end)));
        old.rotated_to = Some(new.key_id);
        old.revision = mutation.revision();
        mutation.update_key(&old).await?;
        // Checked after the old key's expiry is set: without an overlap, the old key no longer
        // counts towards the limit.
        let replaced = admit_new(&mut *mutation, caller, &rules, &new).await?;
        mutation.insert_key(&new, &minted.verifier, None).await?;

        let mut event = key_change(caller, now, EventKind::KeyRotated, &old);
        event.details = issued_details(&new, &replaced);
        event
            .details
            .insert("rotated_to".to_owned(), json!(new.key_id.to_string()));
        event
            .details
            .insert("old_expires_at".to_owned(), of_time(old.expires_at));
        self.commit(context, mutation, event).await?;
        Ok(Issued {
            key: new,
            plaintext: minted.plaintext,
            replaced: !replaced.is_empty(),
        })
    }

    /// Changes a key.
    ///
    /// # Errors
    /// [`ServiceError::KeyRevoked`], [`ServiceError::RevisionMismatch`], a violated tenant rule, and
    /// the errors common to all calls.
    pub async fn update(
        &self,
        context: &CallContext,
        tenant: Option<&str>,
        id: KeyId,
        patch: KeyPatch,
    ) -> Result<Key, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        let mut key = key_in_view(&mut *mutation, caller, tenant, id, Action::KeysUpdate).await?;
        admit_change(caller, &key.tenant_id, &key.scopes)?;
        if key.revoked.is_some() {
            return Err(ServiceError::KeyRevoked);
        }
        if key.unreadable {
            return Err(ServiceError::KeyUnreadable);
        }
        admit_revision(patch.revision, key.revision)?;
        let rules = tenant_in(&mut *mutation, &key.tenant_id).await?;
        obey([
            (patch.scopes.as_ref()).map_or(Ok(()), |scopes| rules.admit_scopes(scopes)),
            (patch.expires_at).map_or(Ok(()), |at| rules.admit_expiry(key.created_at, at)),
        ])?;
        if let Some(expiry) = patch.expires_at {
            admit_extension(&key, expiry)?;
            admit_revival(&mut *mutation, &rules, &key, self.clock.now()).await?;
        }
        let before = of_key(&key);
        patch.apply(&mut key);
        admit_grant(caller, &key.tenant_id, &key.scopes)?;
        key.revision = mutation.revision();
        mutation.update_key(&key).await?;

        let mut event = key_change(caller, self.clock.now(), EventKind::KeyUpdated, &key);
        event.details = changed(&before, of_key(&key));
        self.commit(context, mutation, event).await?;
        Ok(key)
    }

    /// Revokes a key permanently and returns it with the revision that revoked it. A key that is
    /// already revoked stays unchanged.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn revoke(
        &self,
        context: &CallContext,
        tenant: Option<&str>,
        id: KeyId,
        reason: String,
    ) -> Result<(Key, i64), ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Revocation).await?;
        let caller = &caller;
        let mut key = key_in_view(&mut *mutation, caller, tenant, id, Action::KeysRevoke).await?;
        if key.revoked.is_some() {
            // The earlier revocation may not be enforced yet.
            let since = if self.cache.faults().has(Failpoint::NoSecondWait) {
                0
            } else {
                key.revision
            };
            return Ok((key, since));
        }
        let now = self.clock.now();
        let revoked = Revocation {
            at: now,
            by: caller.actor.clone(),
            reason: reason.clone(),
        };
        mutation.revoke_key(id, &revoked).await?;
        key.revoked = Some(revoked);
        key.revision = mutation.revision();

        let mut event = key_change(caller, now, EventKind::KeyRevoked, &key);
        event
            .details
            .insert("reason".to_owned(), Value::String(reason));
        self.commit(context, mutation, event).await?;
        let since = key.revision;
        Ok((key, since))
    }

    /// Counts the keys that [`Keyring::revoke_all`] would revoke, and returns whether there are
    /// more. Reads without a lock and in short statements, each in the caller's turn.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn count_living(
        &self,
        context: &CallContext,
        tenant: &str,
        owner: Option<&str>,
    ) -> Result<(usize, bool), ServiceError> {
        authorize(&context.caller, tenant, Action::KeysRevoke)?;
        let known = self.store.find_tenant(tenant).await?;
        known.ok_or(ServiceError::NoTenant)?;
        let (now, mut living, mut after) = (self.clock.now(), 0, Some(0));
        while let Some(from) = after {
            let counting = self.store.count_living(tenant, owner, now, from);
            let counted = self.turns.read(context, counting).await?;
            living += counted.living;
            if living > COUNT_MAX {
                return Ok((COUNT_MAX, true));
            }
            after = counted.next;
        }
        Ok((living, false))
    }

    /// Revokes all keys of a tenant, or of one owner in it, that are neither revoked nor expired.
    /// Includes suspended keys, because one call can make them usable again.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn revoke_all(
        &self,
        context: &CallContext,
        tenant: &str,
        owner: Option<String>,
        reason: String,
    ) -> Result<Revoked, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Revocation).await?;
        let caller = &caller;
        authorize(caller, tenant, Action::KeysRevoke)?;
        tenant_in(&mut *mutation, tenant).await?;
        let mut event = change(caller, self.clock.now(), EventKind::KeysRevoked, tenant);
        event.owner_id = owner;
        let count = revoke_living(&mut *mutation, &mut event, reason).await?;
        if count == 0 {
            return Ok(Revoked {
                count,
                revision: None,
                // Another call may have revoked them just before.
                since: mutation.revision() - 1,
            });
        }
        let revision = mutation.revision();
        self.commit(context, mutation, event).await?;
        Ok(Revoked {
            count,
            revision: Some(revision),
            since: revision,
        })
    }

    /// Returns the key with this id.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn find_key(
        &self,
        caller: &Caller,
        tenant: Option<&str>,
        id: KeyId,
        action: Action,
    ) -> Result<Key, ServiceError> {
        admit_key(self.store.find_key(id).await?, caller, tenant, action)
    }

    /// Returns a tenant's keys, newest first. The scan can stop before the end of the list; the
    /// result then contains the position at which to continue.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn list_keys(
        &self,
        context: &CallContext,
        query: &KeyQuery,
        page: &Page,
    ) -> Result<Listed, ServiceError> {
        if let TenantSet::These(tenants) = &query.tenants {
            for tenant in tenants {
                authorize(&context.caller, tenant, Action::KeysList)?;
            }
        } else if context.caller.tenants(Action::KeysList) != TenantSet::All {
            return Err(ServiceError::Forbidden(Action::KeysList));
        }
        let listing = self.store.list_keys(query, self.clock.now(), page);
        let listed = self.turns.read(context, listing).await?;
        if let TenantSet::These(tenants) = &query.tenants
            && let [tenant] = &tenants[..]
            && listed.keys.is_empty()
        {
            let found = self.store.find_tenant(tenant).await?;
            found.ok_or(ServiceError::NoTenant)?;
        }
        Ok(listed)
    }
}

/// The parts of a key that does not exist yet.
struct Minted {
    key_id: KeyId,
    prefix: String,
    plaintext: Plaintext,
    verifier: Verifier,
}

impl Keyring {
    /// Generates a key for this tenant. Runs before the mutation begins, so that no other call
    /// waits for Argon2.
    async fn mint(&self, context: &CallContext, tenant: &str) -> Result<Minted, ServiceError> {
        let tenant = self
            .store
            .find_tenant(tenant)
            .await?
            .ok_or(ServiceError::NoTenant)?;
        let prefix = tenant.prefix().to_owned();
        let (key_id, plaintext) = Plaintext::mint(&prefix, &mut rand::rng());
        let sealing = self.secrets.seal(&plaintext, &context.caller.principal);
        let sealed = context.while_present(sealing).await;
        let verifier = self.turns.note(Stage::Hash, sealed)??;
        Ok(Minted {
            key_id,
            prefix,
            plaintext,
            verifier,
        })
    }
}

/// Revokes the living keys of an event's tenant, or of its owner if it has one, and adds them to the
/// event. Returns the number of keys.
pub(super) async fn revoke_living(
    mutation: &mut dyn Mutation,
    event: &mut Change,
    reason: String,
) -> Result<usize, ServiceError> {
    let (tenant, owner, now) = (&*event.tenant_id, event.owner_id.as_deref(), event.at);
    let keys = mutation.list_living(tenant, owner, now).await?;
    if keys.is_empty() {
        return Ok(0);
    }
    mutation
        .revoke_living(tenant, owner, now, &event.actor, &reason)
        .await?;
    let told = &keys[..keys.len().min(TOLD_MAX)];
    event.details.extend([
        ("reason".to_owned(), Value::String(reason)),
        ("revoked_count".to_owned(), json!(keys.len())),
        ("key_ids".to_owned(), of_ids(told)),
    ]);
    Ok(keys.len())
}

/// Returns an event about one key, with the common fields set.
fn key_change(caller: &Caller, at: Timestamp, kind: EventKind, key: &Key) -> Change {
    Change {
        key_id: Some(key.key_id),
        owner_id: Some(key.owner_id.clone()),
        ..change(caller, at, kind, &key.tenant_id)
    }
}

/// Returns the event details of a new key.
fn issued_details(key: &Key, replaced: &[KeyId]) -> Details {
    let mut details = Details::new();
    details.insert("label".to_owned(), json!(key.label));
    details.insert("scopes".to_owned(), of_scopes(&key.scopes));
    details.insert("expires_at".to_owned(), of_time(key.expires_at));
    if !replaced.is_empty() {
        details.insert("replaced".to_owned(), of_ids(replaced));
    }
    details
}

impl Lifetime {
    fn from(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Until(at) => at,
            Self::For(span) => now.after(span),
        }
    }
}
