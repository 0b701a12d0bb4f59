//! Paths as a service behind Envoy may read them.
//!
//! Services decode paths differently. If a service could read a path as another one, a rule for the
//! other path could be evaded. Such a path matches no route.

/// Returns the decoded segments of a path, without their parameters (`;…`). Returns `None` if
/// services could read the path differently: with `.`, `..` or empty segments, or an encoded
/// separator.
pub(super) fn segments(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let path = path.strip_prefix(b"/")?;
    let count = path.split(|byte| *byte == b'/').count();
    let mut segments = Vec::with_capacity(count);
    for (place, segment) in path.split(|byte| *byte == b'/').enumerate() {
        let mut segment = decode(segment)?;
        if let Some(parameters) = segment.iter().position(|byte| *byte == b';') {
            segment.truncate(parameters);
            if segment.is_empty() {
                return None;
            }
        }
        let last = place + 1 == count;
        match &*segment {
            // A slash at the end separates nothing.
            [] if last => {}
            [] | b"." | b".." => return None,
            _ => segments.push(segment),
        }
    }
    Some(segments)
}

fn decode(segment: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.iter();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => hex(*bytes.next()?)? << 4 | hex(*bytes.next()?)?,
            byte => *byte,
        };
        if matches!(byte, b'/' | b'\\' | b'#' | b'?') || byte.is_ascii_control() {
            return None;
        }
        decoded.push(byte);
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Option<String> {
        let segments = segments(path.as_bytes())?;
        Some(String::from_utf8(segments.join(&b'/')).unwrap())
    }

    #[test]
    fn a_path_is_read_as_services_read_it() {
        for (path, segments) in [
            ("/", ""),
            ("/orders", "orders"),
            ("/orders/", "orders"),
            ("/%6frders/7", "orders/7"),
            ("/orders;version=1/7", "orders/7"),
            ("/a%25b", "a%b"),
            ("/a.b/..c", "a.b/..c"),
        ] {
            assert_eq!(read(path).as_deref(), Some(segments), "{path}");
        }
    }

    #[test]
    fn a_path_that_services_read_differently_is_no_path() {
        for path in [
            "",
            "*",
            "orders",
            "//orders",
            "/public//admin",
            "/public/../admin",
            "/public/./admin",
            "/public/..",
            "/public/%2e%2e/admin",
            "/public/.%2E;x/admin",
            "/public/..;/admin",
            "/;x/admin",
            "/public%2f..%2fadmin",
            "/public\\..\\admin",
            "/public%5cadmin",
            "/admin%00",
            "/admin%",
            "/admin%2",
            "/admin%zz",
            "/admin#x",
            "/admin%3fx",
        ] {
            assert_eq!(read(path), None, "{path}");
        }
    }
}
