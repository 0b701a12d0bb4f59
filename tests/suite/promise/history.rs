//! What was asked and what was answered, by one clock, and whether it keeps the promise of revocation.
//!
//! A change has three causes to choose from, which do not touch each other: a key may be revoked, suspended, or
//! narrowed by its owner. Of one key and one cause there is one change after the other, never two at once; a call
//! whose outcome is not known may be carried out at any later time.

use std::{collections::HashMap, fmt, time::Duration};

use gatekey::api::proto::Reason;
use tonic::Code;

use super::fault::Fault;

/// By what a key may be refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    Revoked,
    Suspended,
    Owner,
}

/// What a Validate was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Allowed,
    Refused(Reason),
    /// Nothing could be decided, as a server may say that has no store, no room or no time.
    ValidateError(Code),
    /// The connection broke, there was none, or the client did not wait any longer.
    None,
}

/// One Validate. Times are since the beginning of the test.
#[derive(Clone, Debug)]
pub struct Validation {
    pub key: u32,
    /// Which process was asked.
    pub process: u32,
    pub begin: Duration,
    pub end: Duration,
    pub answer: Answer,
    /// The process could not reach its store at any time of the call, nor for a while before.
    pub cut_off: bool,
}

/// What became of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Enforced,
    /// It will be, at this time.
    Pending(Duration),
    /// Nobody knows whether it was made, or whether it will be.
    Unknown,
}

/// One change of what keys may do.
#[derive(Clone, Debug)]
pub struct Change {
    pub keys: Vec<u32>,
    pub cause: Cause,
    /// They may do more than before, not less.
    pub widens: bool,
    pub begin: Duration,
    pub end: Duration,
    pub outcome: Outcome,
}

/// All that happened.
#[derive(Default)]
pub struct History {
    pub validations: Vec<Validation>,
    pub changes: Vec<Change>,
    pub faults: Vec<Fault>,
}

/// What breaks the promise.
#[derive(Clone, Debug)]
pub enum Violation {
    /// Allowed by what was true before this change.
    Stale {
        validation: Validation,
        change: Change,
    },
    /// Refused by what nobody has done.
    Refused(Validation),
    /// An error that no fault excuses.
    Error(Validation),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { validation, change } => {
                let since = change.since().unwrap_or_default();
                let late = validation.begin.saturating_sub(since);
                write!(
                    f,
                    "allowed, asked {late:?} after {change:?}: {validation:?}"
                )
            }
            Self::Refused(validation) => write!(f, "refused without a cause: {validation:?}"),
            Self::Error(validation) => write!(f, "an error without a cause: {validation:?}"),
        }
    }
}

impl Change {
    /// Since when nobody may be answered by what was true before.
    fn since(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::Enforced => Some(self.end),
            Outcome::Pending(by) => Some(by.max(self.end)),
            Outcome::Unknown => None,
        }
    }

    /// The last moment at which it may have been made.
    fn latest(&self) -> Duration {
        match self.outcome {
            Outcome::Enforced | Outcome::Pending(_) => self.end,
            Outcome::Unknown => Duration::MAX,
        }
    }
}

impl Answer {
    /// Why it was refused; an answer that no change explains has none.
    fn cause(self) -> Option<Cause> {
        match self {
            Self::Refused(Reason::Revoked) => Some(Cause::Revoked),
            Self::Refused(Reason::Suspended) => Some(Cause::Suspended),
            Self::Refused(Reason::OwnerSuspended | Reason::InsufficientScope) => Some(Cause::Owner),
            _ => None,
        }
    }
}

impl History {
    /// All that breaks the promise.
    pub fn violations(&self) -> Vec<Violation> {
        let mut changes = HashMap::<u32, Vec<&Change>>::new();
        for change in &self.changes {
            for key in &change.keys {
                changes.entry(*key).or_default().push(change);
            }
        }
        let none = Vec::new();
        let of = |key| changes.get(&key).unwrap_or(&none);
        let check = |validation: &Validation| check(validation, of(validation.key));
        self.validations.iter().filter_map(check).collect()
    }
}

/// What is wrong with one answer, given the changes of its key.
fn check(validation: &Validation, changes: &[&Change]) -> Option<Violation> {
    match validation.answer {
        Answer::Allowed => {
            let stale = changes.iter().find(|change| {
                !change.widens
                    && change.since().is_some_and(|since| since < validation.begin)
                    && !widened_again(change, validation, changes)
            })?;
            Some(Violation::Stale {
                validation: validation.clone(),
                change: (*stale).clone(),
            })
        }
        Answer::Refused(_) => {
            let cause = validation.answer.cause();
            let narrowed = changes.iter().any(|change| {
                !change.widens && Some(change.cause) == cause && change.begin < validation.end
            });
            (!narrowed).then(|| Violation::Refused(validation.clone()))
        }
        Answer::ValidateError(
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled,
        )
        | Answer::None => None,
        Answer::ValidateError(_) => Some(Violation::Error(validation.clone())),
    }
}

/// Whether something may have made the key wider again, after the change and before the answer.
fn widened_again(narrowed: &Change, validation: &Validation, changes: &[&Change]) -> bool {
    changes.iter().any(|change| {
        change.widens
            && change.cause == narrowed.cause
            && change.latest() > narrowed.begin
            && change.begin < validation.end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn asked(key: u32, begin: u64, answer: Answer) -> Validation {
        Validation {
            key,
            process: 0,
            begin: at(begin),
            end: at(begin + 5),
            answer,
            cut_off: false,
        }
    }

    fn changed(cause: Cause, widens: bool, begin: u64, outcome: Outcome) -> Change {
        Change {
            keys: vec![1, 2],
            cause,
            widens,
            begin: at(begin),
            end: at(begin + 10),
            outcome,
        }
    }

    /// What is found when these changes were made and this was answered.
    fn found(changes: &[Change], validation: Validation) -> Option<Violation> {
        let history = History {
            validations: vec![validation],
            changes: changes.to_vec(),
            ..History::default()
        };
        history.violations().pop()
    }

    fn is_stale(changes: &[Change], validation: Validation) -> bool {
        matches!(found(changes, validation), Some(Violation::Stale { .. }))
    }

    #[test]
    fn allowed_after_enforced_is_stale() {
        let revoked = [changed(Cause::Revoked, false, 100, Outcome::Enforced)];
        assert!(is_stale(&revoked, asked(1, 111, Answer::Allowed)));
        assert!(is_stale(&revoked, asked(2, 9000, Answer::Allowed)));
        // While the call runs, replicas may differ; another key is none of its business.
        assert!(!is_stale(&revoked, asked(1, 110, Answer::Allowed)));
        assert!(!is_stale(&revoked, asked(3, 111, Answer::Allowed)));
        assert!(!is_stale(
            &revoked,
            asked(1, 111, Answer::Refused(Reason::Revoked))
        ));
    }

    #[test]
    fn pending_is_stale_from_the_time_on_that_was_told() {
        let pending = [changed(Cause::Owner, false, 100, Outcome::Pending(at(500)))];
        assert!(!is_stale(&pending, asked(1, 499, Answer::Allowed)));
        assert!(is_stale(&pending, asked(1, 501, Answer::Allowed)));
        // It cannot have been told earlier than it was.
        let late = [changed(Cause::Owner, false, 100, Outcome::Pending(at(50)))];
        assert!(!is_stale(&late, asked(1, 105, Answer::Allowed)));
        let unknown = [changed(Cause::Owner, false, 100, Outcome::Unknown)];
        assert!(!is_stale(&unknown, asked(1, 900, Answer::Allowed)));
    }

    #[test]
    fn what_was_widened_again_is_not_stale() {
        let suspended = changed(Cause::Suspended, false, 100, Outcome::Enforced);
        let resumed = |begin, outcome| changed(Cause::Suspended, true, begin, outcome);
        let stale =
            |changes: [Change; 2], begin| is_stale(&changes, asked(1, begin, Answer::Allowed));
        assert!(stale(
            [suspended.clone(), resumed(200, Outcome::Enforced)],
            190
        ));
        assert!(!stale(
            [suspended.clone(), resumed(200, Outcome::Enforced)],
            196
        ));
        assert!(!stale(
            [suspended.clone(), resumed(200, Outcome::Enforced)],
            900
        ));
        // What was widened before counts no more, unless it may have been carried out later.
        assert!(stale(
            [suspended.clone(), resumed(50, Outcome::Enforced)],
            200
        ));
        assert!(!stale(
            [suspended.clone(), resumed(50, Outcome::Unknown)],
            200
        ));
        // To resume a key does not bring it back from the dead.
        let revoked = changed(Cause::Revoked, false, 100, Outcome::Enforced);
        assert!(stale([revoked, resumed(200, Outcome::Enforced)], 300));
    }

    #[test]
    fn a_refusal_needs_a_cause_and_an_error_an_excuse() {
        let suspended = [changed(Cause::Suspended, false, 100, Outcome::Unknown)];
        let refused = |reason, begin| {
            let validation = asked(1, begin, Answer::Refused(reason));
            matches!(found(&suspended, validation), Some(Violation::Refused(_)))
        };
        assert!(!refused(Reason::Suspended, 300));
        assert!(!refused(Reason::Suspended, 96));
        assert!(refused(Reason::Suspended, 95));
        assert!(refused(Reason::Revoked, 300));
        assert!(refused(Reason::NotFound, 300));
        let error = |code| found(&[], asked(1, 1, Answer::ValidateError(code))).is_some();
        assert!(!error(Code::Unavailable) && !error(Code::ResourceExhausted));
        assert!(error(Code::Internal) && error(Code::Unauthenticated));
        assert!(found(&[], asked(1, 1, Answer::None)).is_none());
    }
}
