//! A DNS server as a headless Service has one: a name, and the addresses of who serves at the moment.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
};

use tokio::sync::watch;

/// The head of a message (RFC 1035, 4.1.1) has so many bytes.
const HEAD: usize = 12;
/// An answer, by an authority, without an error.
const ANSWER: [u8; 2] = [0x84, 0x00];
/// The type of an IPv4 address.
const A: [u8; 2] = [0, 1];

/// Answers any question for IPv4 addresses with these, and any other with nothing, to be forgotten at once. It does so
/// until the process ends.
pub fn serve(addresses: watch::Receiver<BTreeSet<Ipv4Addr>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let addr = socket.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut asked = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut asked) {
            if let Some(answer) = answer(&asked[..length], &addresses.borrow()) {
                // Who is gone needs none.
                socket.send_to(&answer, peer).ok();
            }
        }
    });
    addr
}

fn answer(asked: &[u8], addresses: &BTreeSet<Ipv4Addr>) -> Option<Vec<u8>> {
    let name = asked.get(HEAD..)?.iter().position(|byte| *byte == 0)? + 1;
    // Type and class follow the name.
    let question = asked.get(HEAD..HEAD + name + 4)?;
    let addresses: Vec<_> = addresses
        .iter()
        .filter(|_| question[name..][..2] == A)
        .collect();
    let count = u8::try_from(addresses.len()).ok()?;
    let mut answer = [&asked[..2], &ANSWER, &[0, 1, 0, count, 0, 0, 0, 0]].concat();
    answer.extend(question);
    for address in addresses {
        // The name above, IPv4, Internet, forgotten after 0 s, 4 bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
