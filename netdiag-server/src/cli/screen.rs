//! A page that is drawn again and again in its place: the terminal's other screen, one write per frame, no flicker.

use std::io::{IsTerminal, Write};

use crate::answer::observe::Size;

/// What a terminal has that does not tell its size.
const USUAL: Size = Size { width: 80, height: Some(24) };

/// The other screen (`xterm` private mode 1049), without the cursor (DECTCEM) and without wrapping long lines (DECAWM), which
/// would move all that follows; everything is given back when this is dropped.
pub(super) struct Screen {
    remark: String,
}

impl Screen {
    /// None when standard output is no terminal.
    pub fn enter() -> Option<Self> {
        if !std::io::stdout().is_terminal() {
            return None;
        }
        write("\x1b[?1049h\x1b[?25l\x1b[?7l");
        Some(Self { remark: String::new() })
    }

    /// Back to the screen as it was.
    pub fn leave(self) {
        drop(self);
    }

    /// A line that is shown over the next frame, and once.
    pub fn remark(&mut self, why: &str) {
        why.clone_into(&mut self.remark);
    }

    pub fn draw(&mut self, page: impl FnOnce(Size) -> String) {
        let size = size();
        let height = size.height.unwrap_or(usize::MAX);
        let remark = std::mem::take(&mut self.remark);
        let room = height.saturating_sub(usize::from(!remark.is_empty()));
        let page = page(Size { height: Some(room), ..size });
        let lines = std::iter::once(remark.as_str()).filter(|line| !line.is_empty()).chain(page.lines());
        // Lines are cleared as they are written and never before: nothing is blank in between. Terminals that know
        // synchronized output (private mode 2026) show the frame at once, the others ignore it.
        let mut frame = "\x1b[?2026h\x1b[H".to_owned();
        for (index, line) in lines.take(height).enumerate() {
            if index > 0 {
                frame.push_str("\r\n");
            }
            frame.push_str(line);
            frame.push_str("\x1b[K");
        }
        frame.push_str("\x1b[J\x1b[?2026l");
        write(&frame);
    }

    /// For what is written once or line by line.
    pub fn unlimited() -> Size {
        // Pipes and files have no edge: names stay whole there, so that they can be searched for.
        let width = if std::io::stdout().is_terminal() { size().width } else { usize::MAX };
        Size { width, height: None }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write("\x1b[?7h\x1b[?25h\x1b[?1049l");
    }
}

fn size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { width: usize::from(size.ws_col), height: Some(usize::from(size.ws_row)) }
        }
        _ => USUAL,
    }
}

/// A terminal that is gone ends the program by SIGHUP; there is nobody to tell.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
