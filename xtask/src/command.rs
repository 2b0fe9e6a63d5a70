//! Running other programs. A failure names the command, how it ended and the end of what it said.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed command's output that are worth showing: a Go or Rust error fits, a build's progress does not.
const TAIL_LINES: usize = 25;

/// Where Debian keeps administrators' tools; an ordinary user's PATH lacks them.
const ADMIN_PATHS: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// A command that also finds administrators' tools.
pub(crate) fn tool(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// A command from words, for fixed command lines.
pub(crate) fn words<W: AsRef<std::ffi::OsStr>>(words: &[W]) -> Command {
    let (program, arguments) = words.split_first().expect("callers pass at least the program's name");
    let mut command = tool(program);
    command.args(arguments);
    command
}

/// Runs with the caller's terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs in silence and returns what was written to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    stdout_of(command, &output)
}

/// As [`output`], with `input` on standard input.
pub(crate) fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    let mut stdin = child.stdin.take().expect("standard input was asked for as a pipe");
    let input = input.to_owned();
    // Written from a thread: a child that fills its output before it has read its input would wait for us for ever.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {}", shown(command)))?;
    // A child that ended early closed the pipe; its exit code says more than our write error.
    let _ = writer.join();
    stdout_of(command, &output)
}

/// Where a program is, if it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = search_path();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn stdout_of(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        bail!("{} failed: {}\n{}", shown(command), output.status, tail(&String::from_utf8_lossy(said), TAIL_LINES));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    format!("{path}:{ADMIN_PATHS}")
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_shows_the_end_of_its_error() {
        let error = output(&mut words(&["sh", "-c", "seq 100 >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("99\n100") && !error.contains("\n50\n"), "{error}");
    }

    #[test]
    fn more_input_than_a_pipe_holds_is_passed_on() {
        let text = "x".repeat(300_000);
        assert_eq!(output_with_input(&mut words(&["cat"]), &text).unwrap(), text);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut words(&["no-such-program", "--flag"])).unwrap_err();
        assert_eq!(error.to_string(), "cannot start no-such-program --flag");
    }
}
