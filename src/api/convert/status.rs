//! The only module that chooses status codes.
//!
//! Every status has an `ErrorInfo` with a machine-readable reason; the message is for people.
//! Neither contains text of a database driver. Of the request's values they contain only parsed
//! ones: a code point, a network, a scope.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, OnceLock},
    time::Duration,
};

use thiserror::Error;
use tonic::{Code, Status, codegen::http::Response};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};
use tracing::warn;

use crate::{
    domain::{scope::Scope, tenant::Rule, token::KeyId, violation::Violation},
    metrics::LogLimit,
    service::{error::ServiceError, presence::Gone, secret::Busy, validator::ValidateError},
    store::StoreError,
};

/// `ErrorInfo.domain` of every error.
const DOMAIN: &str = "gatekey";

/// Retry delay for a call that the server cannot handle now.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Maximum number of violations in the message. The details contain all of them.
const TOLD_MAX: usize = 8;

/// Size in bytes of the message beyond which no violation is added.
const MESSAGE_LENGTH: usize = 512;

/// Maximum size in bytes of the scopes and their descriptions in the details, because an error is
/// sent in headers.
const DETAILS_MAX: usize = 2048;

/// All violations of a request. Never empty.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the request has {} invalid fields", .0.len())]
pub struct Invalid(pub Vec<Violation>);

/// The reason a caller is not authenticated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AuthnError {
    #[error(
        "give `authorization: Bearer <credential>`: the admin token, or a key of tenant system"
    )]
    NoCredential,
    #[error("the credential is not the admin token and no valid key of tenant system")]
    BadCredential,
    #[error("several `authorization` headers came with the call: give one")]
    TwoCredentials,
    #[error("the client certificate names no owner of tenant system who may call")]
    BadCertificate,
}

fn status(code: Code, reason: &str, message: &str) -> Status {
    with_details(code, reason, HashMap::new(), message, ErrorDetails::new())
}

fn with_details(
    code: Code,
    reason: &str,
    metadata: HashMap<String, String>,
    message: impl Into<String>,
    mut details: ErrorDetails,
) -> Status {
    details.set_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// Returns a status whose `ErrorInfo` metadata contains this name and value.
fn telling(code: Code, reason: &str, (name, value): (&str, String), message: String) -> Status {
    let metadata = HashMap::from([(name.to_owned(), value)]);
    with_details(code, reason, metadata, message, ErrorDetails::new())
}

fn retry_later(code: Code, reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    with_details(code, reason, HashMap::new(), message, details)
}

/// Returns the status of a call whose message does not decode as the method's request type.
pub(in crate::api) fn unreadable() -> Status {
    let message = "the message cannot be read as what this call takes";
    status(Code::InvalidArgument, "UNREADABLE_MESSAGE", message)
}

/// Returns the status of a call that did not finish because of a bug in gatekey.
pub(in crate::api) fn failed() -> Status {
    let message = "the call failed; what it was to change may or may not have been changed";
    status(Code::Internal, "FAILED", message)
}

/// Returns the status of a stream that ends because the server is stopping.
pub(in crate::api) fn stopping() -> Status {
    retry_later(
        Code::Unavailable,
        "STOPPING",
        "the server is stopping: call another replica",
    )
}

/// Returns the status of a call rejected because too many calls are in progress.
#[must_use]
pub fn overloaded() -> Status {
    retry_later(
        Code::ResourceExhausted,
        "CALLS_BUSY",
        "too many calls are under way at once",
    )
}

/// Returns the status of a call whose request was not complete in time.
pub(in crate::api) fn incomplete() -> Status {
    let message = "the request was not complete within 10 seconds";
    status(Code::DeadlineExceeded, "REQUEST_INCOMPLETE", message)
}

/// Returns the status of a call whose caller left or whose deadline passed.
pub(in crate::api) fn gone(gone: Gone) -> Status {
    let (code, reason) = match gone {
        Gone::Left => (Code::Cancelled, "CANCELLED"),
        Gone::DeadlinePassed => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    };
    status(code, reason, &gone.to_string())
}

/// Returns the status of a call whose request or response exceeds the memory budget.
pub(in crate::api) fn memory_busy() -> Status {
    retry_later(
        Code::ResourceExhausted,
        "MEMORY_BUSY",
        "too many bytes of requests and answers are waiting",
    )
}

/// Returns the status of an item of a batch whose results would be too large with it.
pub(in crate::api) fn response_too_large() -> Status {
    retry_later(
        Code::ResourceExhausted,
        "RESPONSE_TOO_LARGE",
        "the results before this one are as large as a response may be: send it in another call",
    )
}

/// Returns the status of a call to a method that does not exist.
pub(in crate::api) fn unknown_method() -> Status {
    let message = "this method is not known here";
    status(Code::Unimplemented, "UNKNOWN_METHOD", message)
}

/// Returns the status of a call whose metadata is too large.
#[must_use]
pub fn metadata_too_large() -> Status {
    retry_later(
        Code::ResourceExhausted,
        "METADATA_TOO_LARGE",
        "the metadata of the call is larger than 16 KiB",
    )
}

/// Adds the missing details to a status that tonic chose. Returns `None` if it has details already.
///
/// tonic itself responds to calls that reach no handler: an unknown method, a message that is too
/// large, a timeout.
pub(in crate::api) fn completed(foreign: &Status) -> Option<Status> {
    if !foreign.details().is_empty() {
        return None;
    }
    let too_large = foreign.code() == Code::OutOfRange;
    let code = if too_large {
        Code::ResourceExhausted
    } else {
        foreign.code()
    };
    // Replaces tonic's message, which may repeat data from the request.
    let (reason, message) = match code {
        Code::Ok => return None,
        Code::ResourceExhausted if too_large => (
            "MESSAGE_TOO_LARGE",
            "the message is larger than 64 KiB, or that of a BatchValidate larger than 256 KiB",
        ),
        Code::ResourceExhausted => ("BUSY", "the server is busy"),
        Code::Unimplemented if foreign.message().contains("compressed") => {
            ("UNSUPPORTED_ENCODING", "messages must not be compressed")
        }
        Code::Unimplemented => ("UNKNOWN_METHOD", "this method is not known here"),
        Code::Cancelled => ("CANCELLED", "the call was cancelled"),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", "the call took too long"),
        Code::InvalidArgument | Code::OutOfRange => ("INVALID_ARGUMENT", "the call is invalid"),
        Code::Unauthenticated => ("UNAUTHENTICATED", "the caller is not known"),
        Code::PermissionDenied => ("PERMISSION_DENIED", "the caller may not do this"),
        Code::NotFound => ("NOT_FOUND", "there is no such thing"),
        Code::AlreadyExists => ("ALREADY_EXISTS", "there is such a thing already"),
        Code::FailedPrecondition => ("FAILED_PRECONDITION", "this cannot be done now"),
        Code::Aborted => ("ABORTED", "the call was aborted"),
        Code::Unavailable => ("UNAVAILABLE", "the server cannot answer now"),
        Code::Internal => ("INTERNAL", "the call cannot be read, or the server failed"),
        Code::DataLoss => ("DATA_LOSS", "the server failed"),
        Code::Unknown => ("UNKNOWN", "the call failed"),
    };
    let passing = matches!(code, Code::ResourceExhausted | Code::Unavailable);
    let complete = if passing { retry_later } else { status };
    Some(complete(code, reason, message))
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        let mut message = String::from("invalid: ");
        for (place, wrong) in invalid.0.iter().enumerate().take(TOLD_MAX) {
            if message.len() > MESSAGE_LENGTH {
                break;
            }
            let separator = if place == 0 { "" } else { "; " };
            message.extend([separator, &wrong.field, " ", &wrong.description]);
        }
        let violations: Vec<_> = invalid
            .0
            .iter()
            .map(|violation| FieldViolation::new(&violation.field, &violation.description))
            .collect();
        let details = ErrorDetails::with_bad_request(violations);
        with_details(
            Code::InvalidArgument,
            "INVALID_FIELDS",
            HashMap::new(),
            message,
            details,
        )
    }
}

impl From<AuthnError> for Status {
    fn from(unknown: AuthnError) -> Self {
        let reason = match unknown {
            AuthnError::NoCredential => "CREDENTIAL_MISSING",
            AuthnError::BadCredential | AuthnError::TwoCredentials | AuthnError::BadCertificate => {
                "CREDENTIAL_INVALID"
            }
        };
        status(Code::Unauthenticated, reason, &unknown.to_string())
    }
}

impl From<ValidateError> for Status {
    fn from(undecided: ValidateError) -> Self {
        match undecided {
            ValidateError::Store(error) => error.into(),
            ValidateError::Busy(busy) => busy.into(),
            ValidateError::Overloaded => retry_later(
                Code::ResourceExhausted,
                "LOADS_BUSY",
                &undecided.to_string(),
            ),
            ValidateError::UnknownPepper => {
                retry_later(Code::Unavailable, "UNKNOWN_PEPPER", &undecided.to_string())
            }
        }
    }
}

impl From<Gone> for Status {
    fn from(gone: Gone) -> Self {
        let (code, reason) = match gone {
            Gone::Left => (Code::Cancelled, "CANCELLED"),
            Gone::DeadlinePassed => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        };
        status(code, reason, &gone.to_string())
    }
}

impl From<Busy> for Status {
    fn from(busy: Busy) -> Self {
        retry_later(Code::ResourceExhausted, "HASHING_BUSY", &busy.to_string())
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        // Logs the driver's message here because the status omits it.
        // During an outage every call fails.
        static LINES: OnceLock<Arc<LogLimit>> = OnceLock::new();
        let lines = LINES.get_or_init(|| {
            LogLimit::new(|more| warn!("{more} more calls failed because of the database"))
        });
        if lines.admit() {
            warn!(error = &error as &dyn Error, "the store failed");
        }
        match error {
            StoreError::Unavailable(_) | StoreError::Interrupted(_) | StoreError::ReadOnly => {
                retry_later(Code::Unavailable, "STORE_UNAVAILABLE", &error.to_string())
            }
            StoreError::Unknown(_) => retry_later(
                Code::Unavailable,
                "OUTCOME_UNKNOWN",
                "the change may or may not have been made: repeat the call to be sure (CreateKey \
                 with the same request_id)",
            ),
            StoreError::Corrupt(_) => status(Code::Internal, "STORE_CORRUPT", &error.to_string()),
        }
    }
}

impl From<ServiceError> for Status {
    fn from(refused: ServiceError) -> Self {
        let message = refused.to_string();
        let (code, reason) = match refused {
            ServiceError::Busy(busy) => return busy.into(),
            ServiceError::Followed => {
                return retry_later(Code::ResourceExhausted, "STREAMS_BUSY", &message);
            }
            ServiceError::ChangesBusy => {
                return retry_later(Code::ResourceExhausted, "CHANGES_BUSY", &message);
            }
            ServiceError::ReadsBusy => {
                return retry_later(Code::ResourceExhausted, "READS_BUSY", &message);
            }
            ServiceError::Gone(gone) => return gone.into(),
            ServiceError::Store(error) => return error.into(),
            ServiceError::Rules(rules) => return of_rules(&rules, message),
            ServiceError::RequestRepeated(first) => {
                return of_key(Code::AlreadyExists, "REQUEST_REPEATED", first, message);
            }
            ServiceError::KeyRotated(successor) => {
                return of_key(Code::FailedPrecondition, "KEY_ROTATED", successor, message);
            }
            ServiceError::RevisionAhead(head) => {
                let told = ("head", head.to_string());
                return telling(Code::OutOfRange, "REVISION_AHEAD", told, message);
            }
            ServiceError::OtherStore(store_id) => {
                let told = ("store_id", store_id);
                return telling(Code::FailedPrecondition, "STORE_ID_MISMATCH", told, message);
            }
            ServiceError::RevisionMismatch(revision) => {
                let told = ("revision", revision.to_string());
                return telling(Code::Aborted, "REVISION_MISMATCH", told, message);
            }
            ServiceError::Invalid(violation) => return Invalid(vec![violation]).into(),
            ServiceError::OwnerExists => (Code::AlreadyExists, "OWNER_ALREADY_EXISTS"),
            ServiceError::TenantExists => (Code::AlreadyExists, "TENANT_ALREADY_EXISTS"),
            ServiceError::OwnerHasKeys => (Code::FailedPrecondition, "OWNER_HAS_KEYS"),
            ServiceError::OwnerUnreadable => (Code::FailedPrecondition, "OWNER_UNREADABLE"),
            ServiceError::TenantInUse(_) => (Code::FailedPrecondition, "TENANT_IN_USE"),
            ServiceError::CallerGone => (Code::Unauthenticated, "CREDENTIAL_INVALID"),
            ServiceError::NoKey => (Code::NotFound, "KEY_NOT_FOUND"),
            ServiceError::NoOwner => (Code::NotFound, "OWNER_NOT_FOUND"),
            ServiceError::NoTenant => (Code::NotFound, "TENANT_NOT_FOUND"),
            ServiceError::Forbidden(_) => (Code::PermissionDenied, "ACTION_NOT_GRANTED"),
            ServiceError::NotHeld => (Code::PermissionDenied, "SCOPE_NOT_HELD"),
            ServiceError::Stronger => (Code::PermissionDenied, "STRONGER_PRINCIPAL"),
            ServiceError::KeyRevoked => (Code::FailedPrecondition, "KEY_REVOKED"),
            ServiceError::KeyUnreadable => (Code::FailedPrecondition, "KEY_UNREADABLE"),
            ServiceError::KeyExpired => (Code::FailedPrecondition, "KEY_EXPIRED"),
            ServiceError::KeySuspended => (Code::FailedPrecondition, "KEY_SUSPENDED"),
        };
        status(code, reason, &message)
    }
}

/// Returns the status of a request that violates these rules. The first rule gives the reason. The
/// details name all rules, and each scope that is missing from the catalog.
fn of_rules(rules: &[Rule], message: String) -> Status {
    let reason = rules.first().map_or("RULES", name);
    let mut violations = Vec::new();
    for rule in rules {
        let mut collect = |subject, what: &str| {
            violations.push(PreconditionViolation::new(name(rule), subject, what));
        };
        match rule {
            Rule::ScopeCatalog(outside) => {
                let what = "the tenant's catalog does not have this scope";
                let mut length = 0;
                for scope in outside.iter().map(Scope::as_str) {
                    length += scope.len() + what.len();
                    if length <= DETAILS_MAX {
                        collect(scope, what);
                    }
                }
            }
            _ => collect("", &rule.to_string()),
        }
    }
    let details = ErrorDetails::with_precondition_failure(violations);
    with_details(
        Code::FailedPrecondition,
        reason,
        HashMap::new(),
        message,
        details,
    )
}

/// Returns a rule's name in errors, which is the name of the tenant's field.
fn name(rule: &Rule) -> &'static str {
    match rule {
        Rule::TenantSuspended => "TENANT_SUSPENDED",
        Rule::ScopeCatalog(_) => "SCOPE_CATALOG",
        Rule::RequireExpiry => "REQUIRE_EXPIRY",
        Rule::MaxTtl(_) => "MAX_TTL",
        Rule::MaxActiveKeysPerOwner(_) => "MAX_ACTIVE_KEYS_PER_OWNER",
        Rule::TenantUnreadable => "TENANT_UNREADABLE",
        Rule::RequireOwner => "REQUIRE_OWNER",
        Rule::RequiredOwnerScope(_) => "REQUIRED_OWNER_SCOPE",
    }
}

/// Returns a status whose details name a related key, such as the successor of a rotated key.
fn of_key(code: Code, reason: &str, key: KeyId, message: String) -> Status {
    let key = key.to_string();
    let mut details = ErrorDetails::new();
    details.set_resource_info("gatekey.v1.Key", &key, "", &message);
    with_details(
        code,
        reason,
        HashMap::from([("key_id".to_owned(), key)]),
        message,
        details,
    )
}

/// Adds details to an error response that has none. Any other response stays unchanged.
pub(in crate::api) fn complete<B>(mut response: Response<B>) -> Response<B> {
    let status = Status::from_header_map(response.headers());
    if let Some(status) = status.as_ref().and_then(completed) {
        // This fails only if the message is not a valid header; the message then stays unchanged.
        let _ = status.add_header(response.headers_mut());
    }
    response
}
