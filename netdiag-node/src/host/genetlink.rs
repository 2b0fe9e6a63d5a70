//! Generic netlink: kernel subsystems as families whose numbers are given at run time (`net/netlink/genetlink.c`).

use super::ReadError;
use super::netlink::{Netlink, attribute, attributes, short};

/// Fixed number of the family that knows the others (`GENL_ID_CTRL`).
const CONTROL: u16 = 0x10;
// Commands and attributes of linux/genetlink.h.
const GET_FAMILY: u8 = 3;
const VERSION: u8 = 1;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// The family's number; none when this kernel does not have it, or has not loaded its module.
pub(crate) fn family(netlink: &mut Netlink, name: &str) -> Result<Option<u16>, ReadError> {
    let mut request = vec![GET_FAMILY, VERSION, 0, 0];
    request.extend(attribute(FAMILY_NAME, format!("{name}\0").as_bytes()));
    let step = format!("find the netlink family {name}");
    let decode = |payload: &[u8]| {
        let (_, id) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == FAMILY_ID)?;
        short(id, 0)
    };
    match netlink.get(CONTROL, &request, &step, decode) {
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::SockProtocol;

    use super::*;

    #[test]
    fn family_that_knows_the_others_knows_itself() {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric).unwrap();
        assert_eq!(family(&mut netlink, "nlctrl").unwrap(), Some(CONTROL));
        assert_eq!(family(&mut netlink, "netdiag-nosuch").unwrap(), None);
    }
}
