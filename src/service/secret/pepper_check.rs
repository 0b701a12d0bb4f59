//! Checks at startup that the peppers are the ones that the database was used with.
//!
//! Each pepper has a record: a check value, which a wrong pepper cannot produce, and the revision
//! up to which keys may have no MAC under a known pepper. The check value covers that revision, so
//! that write access to the database is not enough to raise it.

use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use tracing::warn;

use super::Peppers;
use crate::{
    domain::clock::Clock,
    store::{PepperCheck, Store, StoreError},
};

/// The reason why these peppers must not be used with this database.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unfit {
    #[error("the pepper {0} is not the one that the store knows by that id")]
    Wrong(String),
    #[error(
        "it has none of the peppers that the store's keys were made under ({0}): restore it, or, if they are lost, run `gatekey migrate --forget-peppers`, after which those keys are checked by argon2 until each has been used once"
    )]
    Lost(String),
    #[error(
        "it lacks peppers that working keys are still under ({0}): restore their lines, or, if they are lost, run `gatekey migrate --forget-peppers`, after which those keys are checked by argon2 until each has been used once"
    )]
    Dropped(String),
}

/// The reason why the peppers were not accepted.
#[derive(Debug, Error)]
pub enum PepperMismatch {
    #[error(transparent)]
    Unfit(Unfit),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks that the peppers are the ones that the database was used with, and records new ones.
/// Returns the peppers with the data of their records. Without any pepper nothing is checked.
///
/// # Errors
/// Returns a [`PepperMismatch`] if the peppers do not fit or the database fails.
pub async fn check(
    store: &dyn Store,
    clock: &dyn Clock,
    peppers: Peppers,
) -> Result<Peppers, PepperMismatch> {
    let Some(current) = peppers.current() else {
        return Ok(peppers);
    };
    let judged = Mutex::new(Ok(Vec::new()));
    store
        .record_pepper_checks(&|head, known| {
            let new = unrecorded(head, known, &peppers);
            let mut judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
            judged.clone_from(&new);
            new.unwrap_or_default()
        })
        .await?;
    let new = judged.into_inner().unwrap_or_else(PoisonError::into_inner);
    let new = new.map_err(PepperMismatch::Unfit)?;

    let records = store.pepper_checks().await?;
    admit_dropped(store, clock, &peppers, &records).await?;
    let current = records.iter().find(|record| record.pepper_id == current);
    let current = current.ok_or(StoreError::Corrupt("pepper_id"))?;
    if new.contains(current) && current.argon2_until > 0 {
        warn!(
            pepper = current.pepper_id,
            up_to_revision = current.argon2_until,
            "this pepper is used with this database for the first time: keys that were made before \
             are accepted by their Argon2 hash if they have no MAC under a known pepper"
        );
    }
    let older = records
        .iter()
        .filter(|record| record.ordinal < current.ordinal);
    let older = older.map(|record| record.pepper_id.clone());
    let listed = |id: &String| peppers.ids().any(|ours| ours == id);
    let (until, older) = (current.argon2_until, older.filter(listed).collect());
    Ok(peppers.expect_argon2(until, older))
}

/// Returns records for the configured peppers that have none yet.
fn unrecorded(
    head: i64,
    known: &[PepperCheck],
    peppers: &Peppers,
) -> Result<Vec<PepperCheck>, Unfit> {
    let ours = known.iter().filter_map(|record| {
        let check = peppers.check(&record.pepper_id, record.argon2_until)?;
        Some((record, check == *record.check_value))
    });
    // A new pepper inherits the revision of the recorded ones. The first pepper, or the first one
    // after all were forgotten, finds keys that were created without it.
    let mut until = if known.is_empty() { Some(head) } else { None };
    for (record, right) in ours {
        if !right {
            return Err(Unfit::Wrong(record.pepper_id.clone()));
        }
        until = until.max(Some(record.argon2_until));
    }
    let Some(argon2_until) = until else {
        return Err(Unfit::Lost(ids(known
            .iter()
            .map(|record| &*record.pepper_id))));
    };
    let new = peppers
        .ids()
        .filter(|id| known.iter().all(|record| record.pepper_id != *id));
    let first = known.last().map_or(1, |record| record.ordinal + 1);
    let records = (first..).zip(new).filter_map(|(ordinal, id)| {
        Some(PepperCheck {
            pepper_id: id.to_owned(),
            ordinal,
            argon2_until,
            check_value: peppers.check(id, argon2_until)?.to_vec(),
        })
    });
    Ok(records.collect())
}

/// Checks that no working key uses a recorded pepper that is missing from the file.
async fn admit_dropped(
    store: &dyn Store,
    clock: &dyn Clock,
    peppers: &Peppers,
    records: &[PepperCheck],
) -> Result<(), PepperMismatch> {
    let dropped = |id: &str| peppers.ids().all(|ours| ours != id);
    if !records.iter().any(|record| dropped(&record.pepper_id)) {
        return Ok(());
    }
    let counts = store.count_by_pepper(clock.now()).await?;
    let needed = records
        .iter()
        .map(|record| &*record.pepper_id)
        .filter(|id| {
            dropped(id)
                && counts
                    .iter()
                    .any(|(pepper, _)| pepper.as_deref() == Some(id))
        });
    let needed = ids(needed);
    if needed.is_empty() {
        return Ok(());
    }
    Err(PepperMismatch::Unfit(Unfit::Dropped(needed)))
}

fn ids<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    ids.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old:b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2w=";
    const NEW: &str = "new:bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmU=";

    fn peppers(lines: &str) -> Peppers {
        Peppers::parse(lines).unwrap()
    }

    fn shown(records: &[PepperCheck]) -> Vec<(&str, i64, i64)> {
        let shown = records.iter();
        shown
            .map(|record| (&*record.pepper_id, record.ordinal, record.argon2_until))
            .collect()
    }

    #[test]
    fn a_new_pepper_takes_over_what_the_one_before_allowed() {
        let old = unrecorded(7, &[], &peppers(OLD)).unwrap();
        assert_eq!(shown(&old), [("old", 1, 7)]);
        let both = peppers(&format!("{NEW}\n{OLD}"));
        let new = unrecorded(9, &old, &both).unwrap();
        assert_eq!(shown(&new), [("new", 2, 7)]);
        let known = [old, new].concat();
        assert_eq!(unrecorded(9, &known, &both), Ok(Vec::new()));
        assert_eq!(unrecorded(9, &known, &peppers(NEW)), Ok(Vec::new()));
    }

    #[test]
    fn a_changed_record_and_an_unrelated_pepper_are_refused() {
        let mut old = unrecorded(0, &[], &peppers(OLD)).unwrap();
        let lost = Err(Unfit::Lost("old".to_owned()));
        assert_eq!(unrecorded(9, &old, &peppers(NEW)), lost);
        old[0].argon2_until = 9;
        let wrong = Err(Unfit::Wrong("old".to_owned()));
        assert_eq!(unrecorded(9, &old, &peppers(OLD)), wrong);
    }
}
