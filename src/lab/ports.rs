//! Free ports on loopback that stay free while nobody listens there, so that a node that was killed finds its
//! own again.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::Range,
};

/// Below the ports that systems hand to outgoing connections, above those that services are known by.
const CANDIDATES: Range<u16> = 20_000..32_000;
/// Tries for each port.
const TRIES_MAX: usize = 200;

/// `count` different addresses on loopback where nobody listens, none of them in `taken`.
pub fn free(count: usize, taken: &[SocketAddr]) -> io::Result<Vec<SocketAddr>> {
    let mut found = BTreeSet::new();
    for _ in 0..count.saturating_mul(TRIES_MAX) {
        if found.len() == count {
            break;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(CANDIDATES)));
        if !taken.contains(&address) && is_free(address) {
            found.insert(address);
        }
    }
    if found.len() < count {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    Ok(found.into_iter().collect())
}

/// Whether one could listen there, on TCP and UDP.
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    #[test]
    fn addresses_differ_from_each_other_and_from_those_taken() {
        let first = free(20, &[]).must();
        let second = free(20, &first).must();

        let all: BTreeSet<_> = first.iter().chain(&second).collect();
        assert_eq!(all.len(), 40);
    }

    #[test]
    fn a_port_with_a_listener_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).must();

        assert!(!is_free(listener.local_addr().must()));
    }
}
