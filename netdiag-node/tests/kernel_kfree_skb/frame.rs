//! Frames that a parser stumbles over.

/// Frames from a fixed seed, so that a failure comes back: random bytes behind a believable start.
pub(super) fn hostile_frames() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let byte = |value: u64| value.to_le_bytes()[0];
    (0..6000)
        .map(|n| {
            let length = usize::from(byte(random())) % 120;
            let mut payload: Vec<u8> = (0..length).map(|_| byte(random())).collect();
            let ether_type: u16 = if n % 2 == 0 { 0x0800 } else { 0x86dd };
            // The version is right in most, the header's length, next header and addresses are whatever came.
            if let Some(first) = payload.first_mut().filter(|_| n % 8 != 7) {
                *first = if ether_type == 0x0800 { 0x40 | (*first & 0xf) } else { 0x60 };
            }
            if let Some(next) = payload.get_mut(6).filter(|_| n % 4 == 1) {
                *next = [0, 43, 44, 51, 60][usize::from(*next) % 5];
            }
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 1]);
            frame.extend(ether_type.to_be_bytes());
            frame.extend(payload);
            frame
        })
        .collect()
}

/// Valid headers with what a parser stumbles over, dropped by a rule so that each is counted: options, fragments, cuts.
pub(super) fn tricky_frames() -> Vec<Vec<u8>> {
    let ipv4 = |first: u8, fragment: u16, total: u16, rest: &[u8]| {
        let mut header = vec![first, 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 1]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, 17, 0, 0, 10, 8, 0, 1, 10, 8, 0, 2]);
        header.extend(rest);
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
        frame.extend(header);
        frame
    };
    let udp = [0x30, 0x39, 0, 53, 0, 8, 0, 0];
    let mut options = vec![1, 1, 1, 0];
    options.extend(udp);
    vec![
        ipv4(0x45, 0, 28, &udp),
        // Four bytes of options before UDP.
        ipv4(0x46, 0, 32, &options),
        // The second fragment has no ports.
        ipv4(0x45, 5, 28, &udp),
        // Ends in the middle of the ports.
        ipv4(0x45, 0, 22, &udp[..2]),
        // A header of 60 bytes in a packet of 28; one of 16.
        ipv4(0x4f, 0, 28, &udp),
        ipv4(0x44, 0, 28, &udp),
        // Says IPv4, is not.
        ipv4(0x65, 0, 28, &udp),
    ]
}
