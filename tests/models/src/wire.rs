//! What is at the other end of a model's link.

use std::collections::VecDeque;

/// Frames on their way, without FCS.
#[derive(Debug, Default)]
pub struct Wire {
    /// Left the device, complete: checksums filled in, cut to size, tagged.
    sent: VecDeque<Vec<u8>>,
    /// Have not been received yet.
    arriving: VecDeque<Vec<u8>>,
    /// Where frames that are sent arrive at once: a device that receives what it sends.
    looped: bool,
    /// Frames that arrived while there was no descriptor for them.
    pub missed: u64,
}

impl Wire {
    /// The device puts a frame on the wire.
    pub fn send(&mut self, frame: Vec<u8>) {
        if self.looped {
            self.arriving.push_back(frame);
        } else {
            self.sent.push_back(frame);
        }
    }

    /// The device takes the next frame off the wire, to receive or to miss it.
    pub fn take_arriving(&mut self) -> Option<Vec<u8>> {
        self.arriving.pop_front()
    }

    /// The device looks at the next frame, to see whether it can take it.
    pub fn next_arriving(&self) -> Option<&[u8]> {
        self.arriving.front().map(Vec::as_slice)
    }

    /// Somebody sends the device a frame.
    pub fn arrive(&mut self, frame: Vec<u8>) {
        self.arriving.push_back(frame);
    }

    /// Somebody gets what the device sent.
    pub fn take_sent(&mut self) -> Option<Vec<u8>> {
        self.sent.pop_front()
    }

    /// Has what is sent arrive at the same device.
    pub fn set_looped(&mut self, looped: bool) {
        self.looped = looped;
    }
}
