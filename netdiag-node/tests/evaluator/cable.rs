//! The end of a cable that a test holds in its hand.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// A socket for whole frames on one link of the calling thread's namespace.
pub fn packet_socket(link: &str) -> OwnedFd {
    let protocol = i32::from(3_u16.to_be());
    // SAFETY: a system call without pointers; the descriptor it returns is ours.
    let socket = unsafe {
        let descriptor = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        assert!(descriptor >= 0, "cannot open a packet socket");
        OwnedFd::from_raw_fd(descriptor)
    };
    // SAFETY: an all-zero sockaddr_ll is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = 3_u16.to_be();
    address.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex(link).unwrap()).unwrap();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: the address is a sockaddr_ll of that length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "cannot bind to {link}");
    socket
}
