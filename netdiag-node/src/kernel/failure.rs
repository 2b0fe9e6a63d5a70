//! Turns aya's errors into one line that says what the kernel refused.

use std::io;

use aya::EbpfError;
use aya::programs::ProgramError;

use super::LoadError;

pub(super) fn failed(step: &str, error: &(dyn std::error::Error + 'static)) -> LoadError {
    match errno(error) {
        Some(libc::EPERM) => LoadError::NotPermitted { step: step.to_owned() },
        _ => LoadError::Failed { step: step.to_owned(), why: shortened(error) },
    }
}

/// The system's error number at the bottom of an error of aya's. Only EPERM means missing rights: EACCES is the verifier's
/// word for a program it refuses.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        // aya's variants show their system error but do not all name it as their source.
        let io_error = match (error.downcast_ref::<ProgramError>(), error.downcast_ref::<EbpfError>()) {
            (Some(ProgramError::LoadError { io_error, .. }), _) => Some(io_error),
            (Some(ProgramError::SyscallError(call)), _) => Some(&call.io_error),
            _ => None,
        };
        if let Some(error) = io_error {
            return error.raw_os_error();
        }
        next = error.source();
    }
    None
}

/// An error and its sources in one line. A verifier's log runs to thousands of lines; its last ones say what it refused.
pub(super) fn shortened(error: &(dyn std::error::Error + 'static)) -> String {
    const KEPT_LINES: usize = 4;
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    let statistics = ["verification time", "stack depth", "processed "];
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !statistics.iter().any(|word| line.starts_with(word)))
        .collect();
    match lines.as_slice() {
        [first, .., _] if lines.len() > KEPT_LINES + 1 => {
            format!("{first} … {}", lines[lines.len() - KEPT_LINES..].join(" | "))
        }
        all => all.join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifiers_log_is_cut_to_its_end() {
        let log = "0: R1=ctx()\n".to_owned()
            + &"1: (b7) r0 = 0\n".repeat(1000)
            + "R2 invalid mem access\nprocessed 1 insns\n";
        let text = shortened(&io::Error::other(log));
        assert!(text.starts_with("0: R1=ctx() … 1: (b7)"), "{text}");
        assert!(text.ends_with("| R2 invalid mem access"), "{text}");
    }
}
