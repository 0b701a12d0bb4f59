//! Deadlines that callers set with `grpc-timeout`.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{codegen::http::HeaderMap, metadata::MetadataMap};

/// Maximum part of a caller's timeout that is reserved for sending the response back.
const WAY_BACK: Duration = Duration::from_millis(100);

/// The deadline of a call, less the time reserved for sending the response back.
#[derive(Clone, Copy, Debug)]
pub(in crate::api) struct CallDeadline {
    until: Option<Instant>,
}

impl CallDeadline {
    /// Returns the deadline of a call that begins now. Ignores a malformed timeout.
    pub(in crate::api) fn of(metadata: &MetadataMap) -> Self {
        let timeout = metadata.get("grpc-timeout");
        let timeout = timeout.and_then(|value| parse(value.to_str().ok()?));
        let usable = timeout.map(|timeout| timeout.saturating_sub(WAY_BACK.min(timeout / 10)));
        Self {
            until: usable.and_then(|usable| Instant::now().checked_add(usable)),
        }
    }

    /// Returns the time left, or `None` if there is no deadline.
    pub(in crate::api) fn left(self) -> Option<Duration> {
        self.until.map(|until| until - Instant::now())
    }
}

/// Returns the deadline of a call that began at `began`, if its headers set a valid timeout.
pub(in crate::api) fn deadline(headers: &HeaderMap, began: Instant) -> Option<Instant> {
    let timeout = parse(headers.get("grpc-timeout")?.to_str().ok()?)?;
    began.checked_add(timeout)
}

/// Parses a `grpc-timeout`: at most eight digits and a unit, as defined by gRPC over HTTP/2.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    let plain = digits.len() <= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u32 = digits.parse().ok().filter(|_| plain)?;
    let one = match unit {
        'H' => Duration::from_hours(1),
        'M' => Duration::from_mins(1),
        'S' => Duration::from_secs(1),
        'm' => Duration::from_millis(1),
        'u' => Duration::from_micros(1),
        'n' => Duration::from_nanos(1),
        _ => return None,
    };
    Some(one * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_the_protocol_says() {
        let cases = [
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("100000000S", None),
            ("", None),
            ("S", None),
            ("+3S", None),
            ("3", None),
            ("3µ", None),
        ];
        for (text, read) in cases {
            assert_eq!(parse(text), read, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn something_is_kept_for_the_way_back() {
        let mut metadata = MetadataMap::new();
        assert_eq!(CallDeadline::of(&metadata).left(), None);
        metadata.insert("grpc-timeout", "500m".parse().unwrap());
        let left = CallDeadline::of(&metadata).left();
        assert_eq!(left, Some(Duration::from_millis(450)));
    }
}
