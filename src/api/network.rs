//! Strict parsing of the addresses and networks in requests.
//!
//! Text that programs interpret differently is an error: `010.0.0.1` is 10.0.0.1 to some and
//! 8.0.0.1 to others; `10.1` is 10.0.0.1 to some and invalid to others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;

/// The reason a text is not an address or a network. Repeats only parsed numbers of the text.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(super) enum BadNetwork {
    #[error("must be an IPv4 or IPv6 address, such as 192.0.2.1, 2001:db8::1 or [2001:db8::1]:80")]
    Address,
    #[error("must be one address, not a list: give the one that your trusted proxy saw")]
    List,
    #[error("must be a network, such as 10.0.0.0/8 or 2001:db8::/32, or an address")]
    Network,
    #[error(
        "must have decimal numbers without leading zeros, which some programs read as octal: \
         {0}"
    )]
    LeadingZero(String),
    #[error("must have four decimal numbers from 0 to 255, such as 192.0.2.1")]
    Parts,
    #[error("must not have a zone (%): give the address only")]
    Zone,
    #[error("must have a prefix length from 0 to {0}, in decimal digits")]
    Length(u8),
    #[error("must be {network} for the network or {address} for the one address")]
    HostBits { network: IpNet, address: IpAddr },
    #[error("must have a prefix length of 96 or more, as an IPv4-mapped network; or give {0}")]
    Mapped(Ipv4Addr),
}

/// Parses an address, with or without brackets and a port. Ignores the port and converts an
/// IPv4-mapped address to IPv4.
pub(super) fn parse_address(text: &str) -> Result<IpAddr, BadNetwork> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || {
        let inside = text.strip_prefix('[')?.strip_suffix(']')?;
        inside.parse::<Ipv6Addr>().ok().map(IpAddr::from)
    };
    let ip = text.parse().ok().or_else(with_port).or_else(bracketed);
    if let Some(ip) = ip {
        return Ok(ip.to_canonical());
    }
    if text.contains(',') {
        return Err(BadNetwork::List);
    }
    // Removes the port of an IPv4 address. An IPv6 address has more than one colon.
    let host = text.split_once(':').filter(|(_, port)| !port.contains(':'));
    Err(explain(
        host.map_or(text, |(host, _)| host),
        BadNetwork::Address,
    ))
}

/// Parses a network, or an address as the network that contains only this address. Converts an
/// IPv4-mapped network to IPv4.
pub(super) fn parse_network(text: &str) -> Result<IpNet, BadNetwork> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let written = address.parse::<IpAddr>();
    let written = written.map_err(|_| explain(address, BadNetwork::Network))?;
    let address = written.to_canonical();
    let Some(length) = length else {
        return Ok(address.into());
    };
    let most = if written.is_ipv4() { 32 } else { 128 };
    let length = parse_length(length, most)?;
    let length = match address {
        IpAddr::V4(address) if written.is_ipv6() => {
            length.checked_sub(96).ok_or(BadNetwork::Mapped(address))?
        }
        _ => length,
    };
    let network = IpNet::new(address, length).map_err(|_| BadNetwork::Length(most))?;
    if network.trunc() != network {
        return Err(BadNetwork::HostBits {
            network: network.trunc(),
            address,
        });
    }
    Ok(network)
}

fn parse_length(text: &str, most: u8) -> Result<u8, BadNetwork> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length = text.parse().ok().filter(|length| *length <= most && digits);
    match length {
        Some(length) if text.len() > 1 && text.starts_with('0') => {
            Err(BadNetwork::LeadingZero(format!("/{length}")))
        }
        Some(length) => Ok(length),
        None => Err(BadNetwork::Length(most)),
    }
}

/// Returns a more specific error than `otherwise` if the text shows the cause.
fn explain(text: &str, otherwise: BadNetwork) -> BadNetwork {
    if text
        .split_once('%')
        .is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok())
    {
        return BadNetwork::Zone;
    }
    let numeric = |part: &str| {
        let hex = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X"));
        let hex = hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        hex || !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let parts: Vec<_> = text.split('.').collect();
    if !parts.iter().all(|part| numeric(part)) {
        return otherwise;
    }
    let decimal: Option<Vec<u8>> = parts.iter().map(|part| part.parse().ok()).collect();
    match decimal.as_deref() {
        Some(&[a, b, c, d]) => BadNetwork::LeadingZero(Ipv4Addr::new(a, b, c, d).to_string()),
        _ => BadNetwork::Parts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_they_are_meant() {
        for (text, read) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.1/32", "192.0.2.1/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("::FFFF:192.0.2.1", "192.0.2.1/32"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("2001:0db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("::1", "::1/128"),
        ] {
            let net = parse_network(text).map(|net| net.to_string());
            assert_eq!(net.as_deref(), Ok(read), "{text}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused_and_told_how_to_be_written() {
        for (text, right) in [
            ("010.0.0.0/8", "10.0.0.0"),
            ("10.0.0.010", "10.0.0.10"),
            ("10.0.0.0/08", "/8"),
            ("10.0.0.0/+8", "0 to 32"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/8 ", "0 to 32"),
            ("10.0.0.0/255.0.0.0", "0 to 32"),
            ("::/129", "0 to 128"),
            (
                "10.1.2.3/8",
                "10.0.0.0/8 for the network or 10.1.2.3 for the one",
            ),
            ("2001:db8::1/32", "2001:db8::/32 for the network"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8 for the network"),
            ("::ffff:0.0.0.0/80", "96 or more"),
            ("1.2.3", "four decimal numbers"),
            ("1.2.3/24", "four decimal numbers"),
            ("2130706433", "four decimal numbers"),
            ("0x7f.0.0.1", "four decimal numbers"),
            ("10.0.0.256", "four decimal numbers"),
            ("fe80::1%eth0/64", "zone"),
            ("example.org", "such as 10.0.0.0/8"),
            (" 10.0.0.0/8", "such as 10.0.0.0/8"),
            ("", "such as 10.0.0.0/8"),
        ] {
            let wrong = parse_network(text).expect_err(text).to_string();
            assert!(wrong.contains(right), "{text}: {wrong}");
        }
    }

    #[test]
    fn addresses_are_read_as_strictly() {
        assert_eq!(parse_address("::ffff:192.0.2.1"), Ok([192, 0, 2, 1].into()));
        assert_eq!(parse_address("2001:DB8::1"), parse_address("2001:db8::1"));
        for (text, right) in [
            ("010.0.0.1", "10.0.0.1"),
            ("1.2.3", "four decimal numbers"),
            ("0x7f.0.0.1", "four decimal numbers"),
            ("fe80::1%eth0", "zone"),
            ("10.0.0.0/8", "such as 192.0.2.1"),
            ("010.0.0.1:80", "10.0.0.1"),
            ("192.0.2.1, 192.0.2.2", "not a list"),
            ("::ffff:010.0.0.1", "such as 192.0.2.1"),
        ] {
            let wrong = parse_address(text).expect_err(text).to_string();
            assert!(wrong.contains(right), "{text}: {wrong}");
        }
    }
}
