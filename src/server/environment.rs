//! Environment variables of settings: empty, invalid and unknown ones.
//!
//! Values may be secret, so the value of an unknown variable is never shown.

use std::{
    env,
    error::Error as _,
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use clap::{
    Arg, Command,
    builder::Resettable,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// The prefix of the variables of all settings.
const PREFIX: &str = "GATEKEY_";

/// Treats each empty variable as unset.
pub(super) fn without_empty(command: Command) -> Command {
    let empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    command.mut_args(|argument| match argument.get_env() {
        Some(name) if empty(name) => argument.env(Resettable::Reset),
        _ => argument,
    })
}

/// Returns the variables that begin like a setting but are none, each with the nearest setting.
pub(super) fn unknown(
    command: &Command,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(String, String)> {
    let known: Vec<_> = variables(command).collect();
    let mut unknown: Vec<_> = environment
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, value)| {
            name.starts_with(PREFIX)
                && !known.contains(&&**name)
                && !is_service_link(name, &value.to_string_lossy())
        })
        .filter_map(|(name, _)| {
            let closeness =
                |known: &str| strsim::sorensen_dice(&known[PREFIX.len()..], &name[PREFIX.len()..]);
            let nearest = known
                .iter()
                .max_by(|one, other| closeness(one).total_cmp(&closeness(other)))?;
            Some((name.clone(), (*nearest).to_owned()))
        })
        .collect();
    unknown.sort();
    unknown
}

/// Returns true if Kubernetes, or Docker's links, set this variable because of a Service whose name
/// begins with `gatekey`
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
fn is_service_link(name: &str, value: &str) -> bool {
    let port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|part| part.parse::<u16>().is_ok());
        let protocol = matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"));
        let attribute = matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"));
        number && protocol && attribute && parts.next().is_none()
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        // The URL distinguishes it from a variable that a user mistakes for a setting.
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.match_indices("_PORT_").any(|(at, found)| port(&name[at + found.len()..]))
}

/// Prints help, the version or the error, and returns the exit code.
pub(super) fn explain(command: &Command, error: &clap::Error) -> ExitCode {
    match invalid_setting(command, error) {
        Some(line) => eprintln!("gatekey: {line}"),
        // An error of a closed terminal cannot be handled.
        None => drop(error.print()),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Returns the error line for a setting with an invalid value.
fn invalid_setting(command: &Command, error: &clap::Error) -> Option<String> {
    if error.kind() == ErrorKind::InvalidUtf8 {
        return Some(not_text(command));
    }
    if !matches!(
        error.kind(),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue
    ) {
        return None;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return None;
    };
    let long = flag.trim_start_matches('-').split([' ', '[', '=']).next()?;
    let argument = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(long))?;
    let variable = argument.get_env()?.to_str()?;
    let right = match (error.get(ContextKind::ValidValue), error.source()) {
        (Some(ContextValue::Strings(values)), _) if values.is_empty() => {
            "must not be empty".to_owned()
        }
        (Some(ContextValue::Strings(values)), _) => format!("must be {}", values.join(" or ")),
        (_, Some(source)) => source.to_string(),
        _ => "see --help".to_owned(),
    };
    Some(format!("{variable} is invalid: {value}: {right}"))
}

/// Returns the error line for an argument or a variable that is not UTF-8.
fn not_text(command: &Command) -> String {
    let wrong = variables(command).find(|name| {
        let value = env::var_os(name);
        value.is_some_and(|value| value.to_str().is_none())
    });
    format!(
        "{} is invalid: it must be UTF-8",
        wrong.unwrap_or("an argument")
    )
}

fn variables(command: &Command) -> impl Iterator<Item = &str> {
    command
        .get_arguments()
        .filter_map(Arg::get_env)
        .filter_map(OsStr::to_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_of_a_service_link_is_no_setting_that_somebody_misspelt() {
        for (name, value) in [
            ("GATEKEY_SERVICE_HOST", "10.0.0.7"),
            ("GATEKEY_SERVICE_PORT", "50051"),
            ("GATEKEY_SERVICE_PORT_GRPC", "50051"),
            ("GATEKEY_PORT", "tcp://10.0.0.7:50051"),
            ("GATEKEY_PORT_50051_TCP", "tcp://10.0.0.7:50051"),
            ("GATEKEY_PORT_50051_TCP_PROTO", "tcp"),
            ("GATEKEY_PORT_50051_TCP_PORT", "50051"),
            ("GATEKEY_PORT_50051_TCP_ADDR", "10.0.0.7"),
            ("GATEKEY_METRICS_SERVICE_HOST", "10.0.0.8"),
            ("GATEKEY_METRICS_PORT_9464_TCP_ADDR", "10.0.0.8"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        for (name, value) in [
            ("GATEKEY_PORT", "50051"),
            ("GATEKEY_HOST", "10.0.0.7"),
            ("GATEKEY_PORT_GRPC", "50051"),
            ("GATEKEY_SERVICE", "10.0.0.7"),
            ("GATEKEY_PORT_50051_HTTP", "1"),
        ] {
            assert!(!is_service_link(name, value), "{name}");
        }
    }
}
