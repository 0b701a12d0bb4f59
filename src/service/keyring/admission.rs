//! Admission checks for new, rotated and changed keys, in the state that the mutation changes.

use super::admit_change;
use crate::{
    domain::{
        caller::Caller,
        clock::Timestamp,
        key::{Key, KeyState, Revocation},
        tenant::{OnLimit, Rule, Tenant},
        token::KeyId,
    },
    service::error::{ServiceError, obey},
    store::Mutation,
};

/// Checks a new key against its tenant's rules. If the owner is at the key limit and the rule is to
/// replace the oldest, revokes the owner's oldest keys. Returns the ids of the revoked keys.
pub(super) async fn admit_new(
    mutation: &mut dyn Mutation,
    caller: &Caller,
    tenant: &Tenant,
    new: &Key,
) -> Result<Vec<KeyId>, ServiceError> {
    let (now, limit) = (new.created_at, tenant.max_active_keys_per_owner);
    let owner = mutation.find_owner(&new.tenant_id, &new.owner_id).await?;
    let mut oldest = Vec::new();
    if limit > 0 {
        oldest = mutation
            .list_living(&new.tenant_id, Some(&new.owner_id), now)
            .await?;
        oldest.truncate((oldest.len() + 1).saturating_sub(limit as usize));
    }
    let room = oldest.is_empty() || tenant.on_limit == OnLimit::ReplaceOldest;
    obey([
        tenant.admit_new_keys(),
        tenant.admit_expiry(now, new.expires_at),
        tenant.admit_scopes(&new.scopes),
        tenant.admit_owner(owner.as_ref()),
        room.then_some(()).ok_or(Rule::MaxActiveKeysPerOwner(limit)),
    ])?;
    for id in &oldest {
        let replaced = mutation.find_key(*id).await?.ok_or(ServiceError::NoKey)?;
        admit_change(caller, &replaced.tenant_id, &replaced.scopes)?;
        let revoked = Revocation {
            at: now,
            by: caller.actor.clone(),
            reason: format!("replaced by {}", new.key_id),
        };
        mutation.revoke_key(*id, &revoked).await?;
    }
    Ok(oldest)
}

/// Checks that a key can be rotated.
pub(super) fn admit_rotation(old: &Key, now: Timestamp) -> Result<(), ServiceError> {
    match (old.state(now), old.rotated_to) {
        (KeyState::Revoked, _) => Err(ServiceError::KeyRevoked),
        (_, Some(successor)) => Err(ServiceError::KeyRotated(successor)),
        (KeyState::Expired, None) => Err(ServiceError::KeyExpired),
        (KeyState::Suspended, None) => Err(ServiceError::KeySuspended),
        (KeyState::Active, None) => Ok(()),
    }
}

/// Checks that a key may get this expiry: the expiry of a key that has a successor cannot be
/// extended.
pub(super) fn admit_extension(key: &Key, expiry: Option<Timestamp>) -> Result<(), ServiceError> {
    let later = expiry.is_none_or(|expiry| key.expires_at.is_some_and(|end| end < expiry));
    match key.rotated_to {
        Some(successor) if later => Err(ServiceError::KeyRotated(successor)),
        _ => Ok(()),
    }
}

/// Checks that a key may get another expiry at `now`: an expired key would become a living key
/// again and count towards the owner's limit.
pub(super) async fn admit_revival(
    mutation: &mut dyn Mutation,
    tenant: &Tenant,
    key: &Key,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let limit = tenant.max_active_keys_per_owner;
    if limit == 0 || key.state(now) != KeyState::Expired {
        return Ok(());
    }
    let living = mutation
        .list_living(&key.tenant_id, Some(&key.owner_id), now)
        .await?;
    if living.len() < limit as usize {
        return Ok(());
    }
    Err(Rule::MaxActiveKeysPerOwner(limit).into())
}
