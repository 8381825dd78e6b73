//! Translations of a guest behind a virtual IOMMU (`VIRTIO_F_ACCESS_PLATFORM`): from I/O virtual addresses, which its
//! rings then hold, to user addresses of its front end.
//!
//! ```text
//!   front end ──UPDATE, INVALIDATE──▶ Iotlb (session thread) ──▶ AddressSpace (all rings, read only), see space.rs
//!       ▲                                                             │
//!       └────────────MISS──────────── session thread ◀──miss report───┘   see iotlb_miss.rs
//! ```
//!
//! Entries never overlap; neighbours that continue each other are one. So a look-up is a binary search among what is
//! valid now, however much came and went before (DPDK e7cb7fdf54 is about a list in which that cost grew).
//!
//! The message is `struct vhost_iotlb_msg` of `linux/vhost_types.h`: iova, size, user address (64 bits each), permission
//! and type (8 bits each), 6 bytes of padding.

use thiserror::Error;

/// Entries, at most. When one more comes, another is forgotten: the ring that needs it reports it missing again. A guest
/// that maps every buffer by itself has about as many as its rings have descriptors.
pub const MAX_ENTRIES: usize = 4096;

/// Length of an IOTLB message in bytes.
pub const MESSAGE: usize = 32;

/// What a translation may be used for (`VHOST_ACCESS_RO`, `_WO`, `_RW`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Permission {
    /// Reading.
    Read = 1,
    /// Writing.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

impl Permission {
    /// By its number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Read, Self::Write, Self::ReadWrite].into_iter().find(|known| *known as u8 == number)
    }

    /// Whether all of `needed` is permitted.
    #[inline]
    pub fn allows(self, needed: Self) -> bool {
        self as u8 & needed as u8 == needed as u8
    }
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum IotlbError {
    /// It has another length than [`MESSAGE`].
    #[error("an IOTLB message of {0} bytes")]
    Length(usize),
    /// A type that only back ends send, or none at all.
    #[error("an IOTLB message of type {0}")]
    Type(u8),
    /// Permission 0, or above 3.
    #[error("an IOTLB entry with permission {0}")]
    Permission(u8),
    /// Size 0, or a range that reaches over the end of an address space.
    #[error("an IOTLB entry of {size:#x} bytes from {iova:#x} to {user:#x}")]
    Range {
        /// I/O virtual address.
        iova: u64,
        /// Size in bytes.
        size: u64,
        /// User address.
        user: u64,
    },
}

/// What a message did to the translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: what it says was so already.
    None,
    /// There are more translations. Address spaces that are in use stay right.
    Added,
    /// Translations have gone, or are others now. The front end may only be answered when no address space from before
    /// is in use any more.
    Removed,
}

/// One translation, of addresses `first` to `last` (inclusive: an entry may reach to the very end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    first: u64,
    last: u64,
    /// User address of `first`.
    user: u64,
    permission: Permission,
}

impl Entry {
    fn new(iova: u64, size: u64, user: u64, permission: Permission) -> Result<Self, IotlbError> {
        let error = IotlbError::Range { iova, size, user };
        let more = size.checked_sub(1).ok_or(error)?;
        let last = iova.checked_add(more).ok_or(error)?;
        user.checked_add(more).ok_or(error)?;
        Ok(Self { first: iova, last, user, permission })
    }

    /// The part from `first` on; only for `first` within the entry.
    fn starting_at(self, first: u64) -> Self {
        Self { first, user: self.user + (first - self.first), ..self }
    }

    fn holds(&self, other: &Self) -> bool {
        self.first <= other.first
            && other.last <= self.last
            && self.starting_at(other.first).user == other.user
    }

    /// Whether `next` continues this one.
    fn continues_in(&self, next: &Self) -> bool {
        self.permission == next.permission
            && self.last.checked_add(1) == Some(next.first)
            && self.user.checked_add(self.last - self.first).and_then(|user| user.checked_add(1))
                == Some(next.user)
    }
}

/// All translations of one guest, as its front end has said them so far.
#[derive(Clone, Debug, Default)]
pub struct Iotlb {
    /// In the order of their addresses; none overlap, none continue each other.
    entries: Vec<Entry>,
    /// Which entry is forgotten next, taken by turns.
    victim: usize,
}

impl Iotlb {
    /// Obeys a message from the front end: `payload` is that of `VHOST_USER_IOTLB_MSG`.
    pub fn apply(&mut self, payload: &[u8]) -> Result<Change, IotlbError> {
        let bytes: &[u8; MESSAGE] = payload.try_into().map_err(|_| IotlbError::Length(payload.len()))?;
        let (words, rest) = bytes.as_chunks::<8>();
        debug_assert!(rest.is_empty());
        let [iova, size, user] = [0, 1, 2].map(|n: usize| u64::from_ne_bytes(words[n]));
        let (permission, kind) = (bytes[24], bytes[25]);
        match kind {
            UPDATE => {
                let permission =
                    Permission::from_number(permission).ok_or(IotlbError::Permission(permission))?;
                self.update(iova, size, user, permission)
            }
            INVALIDATE => self.invalidate(iova, size),
            other => Err(IotlbError::Type(other)),
        }
    }

    /// Adds a translation of `size` bytes. It replaces what it overlaps.
    pub fn update(
        &mut self,
        iova: u64,
        size: u64,
        user: u64,
        permission: Permission,
    ) -> Result<Change, IotlbError> {
        let new = Entry::new(iova, size, user, permission)?;
        let at = self.position(new.first);
        if self.entries.get(at).is_some_and(|old| old.permission == permission && old.holds(&new)) {
            return Ok(Change::None);
        }
        let mut removed = self.cut(new.first, new.last);
        let mut at = self.position(new.first);
        self.entries.insert(at, new);
        if self.entries.get(at + 1).is_some_and(|next| new.continues_in(next)) {
            self.entries[at].last = self.entries.remove(at + 1).last;
        }
        if at > 0 && self.entries[at - 1].continues_in(&self.entries[at]) {
            self.entries[at - 1].last = self.entries.remove(at).last;
            at -= 1;
        }
        removed |= self.forget(at);
        Ok(if removed { Change::Removed } else { Change::Added })
    }

    /// Removes all translations of `size` bytes from `iova`; of entries that are partly in there, the rest stays.
    pub fn invalidate(&mut self, iova: u64, size: u64) -> Result<Change, IotlbError> {
        let Entry { first, last, .. } = Entry::new(iova, size, 0, Permission::Read)?;
        let removed = self.cut(first, last);
        // An entry cut in the middle is one more.
        self.forget(usize::MAX);
        Ok(if removed { Change::Removed } else { Change::None })
    }

    /// Removes everything: the front end has gone, or its memory is another.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All translations, in the order of their addresses: the first address, the last, the user address of the first, and
    /// what they permit.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u64, u64, Permission)> {
        self.entries.iter().map(|entry| (entry.first, entry.last, entry.user, entry.permission))
    }

    /// The user address of `iova`, and how many of the `len` bytes from there are within the same entry (at least one
    /// for `len > 0`); `None` when no entry permits `needed` there.
    pub fn translate(&self, iova: u64, len: u32, needed: Permission) -> Option<(u64, u32)> {
        let entry = self.entries.get(self.position(iova)).filter(|entry| entry.first <= iova)?;
        if !entry.permission.allows(needed) {
            return None;
        }
        // The difference may be 2^64 - 1, so that one more would not fit.
        let behind_first = entry.last - iova;
        let len = if u64::from(len) <= behind_first { len } else { (behind_first + 1) as u32 };
        Some((entry.starting_at(iova).user, len))
    }

    /// The first of `len` bytes at `iova` that cannot be read and written; `None` when all can.
    pub fn first_missing(&self, iova: u64, len: u64) -> Option<u64> {
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            let wanted = u32::try_from(left).unwrap_or(u32::MAX);
            let Some((_, found)) = self.translate(at, wanted, Permission::ReadWrite) else {
                return Some(at);
            };
            (at, left) = (at.wrapping_add(u64::from(found)), left - u64::from(found));
        }
        None
    }

    /// Index of the first entry that ends at or behind `first`.
    fn position(&self, first: u64) -> usize {
        self.entries.partition_point(|entry| entry.last < first)
    }

    /// Takes all addresses from `first` to `last` out; returns whether there were any.
    fn cut(&mut self, first: u64, last: u64) -> bool {
        let begin = self.position(first);
        let count = self.entries[begin..].partition_point(|entry| entry.first <= last);
        let found = &self.entries[begin..begin + count];
        let (Some(left), Some(right)) = (found.first().copied(), found.last().copied()) else { return false };
        let before = (left.first < first).then(|| Entry { last: first - 1, ..left });
        let behind = (last < right.last).then(|| right.starting_at(last + 1));
        self.entries.splice(begin..begin + count, before.into_iter().chain(behind));
        true
    }

    /// Makes room if there is one entry too many, but not at `keep`; returns whether one was forgotten.
    fn forget(&mut self, keep: usize) -> bool {
        if self.entries.len() <= MAX_ENTRIES {
            return false;
        }
        self.victim = (self.victim + 1) % self.entries.len();
        if self.victim == keep {
            self.victim = (self.victim + 1) % self.entries.len();
        }
        self.entries.remove(self.victim);
        true
    }
}

/// Message types of `linux/vhost_types.h`.
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

#[cfg(test)]
mod tests;
