//! Translations against a naive table, and messages that cannot be.

use proptest::prelude::*;

use super::*;

const RW: Permission = Permission::ReadWrite;

fn message(iova: u64, size: u64, user: u64, permission: u8, kind: u8) -> Vec<u8> {
    let mut bytes = [iova, size, user].map(u64::to_ne_bytes).concat();
    bytes.extend([permission, kind, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn user(iotlb: &Iotlb, iova: u64) -> Option<u64> {
    iotlb.translate(iova, 1, Permission::Read).map(|(user, _)| user)
}

#[test]
fn translations_reach_to_the_end_of_their_entry() {
    let mut iotlb = Iotlb::default();
    iotlb.update(0x1000, 0x1000, 0x7000, Permission::Read).unwrap();
    let t = iotlb.clone();
    assert_eq!(t.translate(0x1000, 0x800, Permission::Read), Some((0x7000, 0x800)));
    assert_eq!(t.translate(0x1fff, 8, Permission::Read), Some((0x7fff, 1)));
    assert_eq!(t.translate(0x2000, 1, Permission::Read), None);
    assert_eq!(t.translate(0xfff, 8, Permission::Read), None);
    assert_eq!(t.translate(0x1000, 1, Permission::Write), None, "read only");
    assert_eq!(t.translate(0x1000, 1, RW), None, "read only");
}

#[test]
fn an_entry_may_reach_to_the_end_of_all_addresses() {
    let mut iotlb = Iotlb::default();
    iotlb.update(u64::MAX, 1, 5, RW).unwrap();
    assert_eq!(iotlb.translate(u64::MAX, 9, RW), Some((5, 1)));
    iotlb.update(0, u64::MAX, 0, RW).unwrap();
    assert_eq!(iotlb.translate(0, u32::MAX, RW), Some((0, u32::MAX)));
    assert_eq!(iotlb.invalidate(1, u64::MAX), Ok(Change::Removed));
    assert_eq!((iotlb.len(), user(&iotlb, 0), user(&iotlb, 1)), (1, Some(0), None));
}

#[test]
fn neighbours_that_continue_each_other_are_one() {
    let mut iotlb = Iotlb::default();
    for page in [3, 1, 2, 0] {
        iotlb.update(page << 12, 0x1000, 0x10_0000 + (page << 12), RW).unwrap();
    }
    assert_eq!(iotlb.len(), 1);
    assert_eq!(iotlb.translate(0, 0x4000, RW), Some((0x10_0000, 0x4000)));
    iotlb.update(0x4000, 0x1000, 0, RW).unwrap();
    iotlb.update(0x5000, 0x1000, 0x1000, Permission::Read).unwrap();
    assert_eq!(iotlb.len(), 3, "elsewhere, and with other permission");
}

#[test]
fn messages_say_what_they_changed() {
    let mut iotlb = Iotlb::default();
    assert_eq!(iotlb.apply(&message(0x1000, 0x3000, 0x8000, 3, UPDATE)), Ok(Change::Added));
    assert_eq!(iotlb.apply(&message(0x2000, 0x1000, 0x9000, 3, UPDATE)), Ok(Change::None), "said before");
    assert_eq!(iotlb.apply(&message(0x2000, 0x1000, 0, 0, INVALIDATE)), Ok(Change::Removed));
    assert_eq!((iotlb.len(), user(&iotlb, 0x2000), user(&iotlb, 0x3000)), (2, None, Some(0xa000)));
    assert_eq!(iotlb.apply(&message(0x2000, 0x1000, 0, 0, INVALIDATE)), Ok(Change::None));
    assert_eq!(iotlb.apply(&message(0x1800, 0x1000, 0, 1, UPDATE)), Ok(Change::Removed), "replaced");
    iotlb.clear();
    assert!(iotlb.is_empty());
}

#[test]
fn messages_that_cannot_be_are_refused() {
    let mut iotlb = Iotlb::default();
    let mut apply = |bytes: &[u8]| iotlb.apply(bytes).unwrap_err();
    assert_eq!(apply(&[0; 31]), IotlbError::Length(31));
    assert_eq!(apply(&[0; 33]), IotlbError::Length(33));
    for kind in [0, 1, 4, 5, 255] {
        assert_eq!(apply(&message(0, 1, 0, 3, kind)), IotlbError::Type(kind));
    }
    for permission in [0, 4, 255] {
        assert_eq!(apply(&message(0, 1, 0, permission, UPDATE)), IotlbError::Permission(permission));
    }
    for (iova, size, user) in
        [(0, 0, 0), (1, u64::MAX, 1 << 63), (u64::MAX, 2, 0), (0, 2, u64::MAX), (0x1000, u64::MAX - 0xffe, 0)]
    {
        let range = IotlbError::Range { iova, size, user };
        assert_eq!(apply(&message(iova, size, user, 3, UPDATE)), range);
    }
    assert!(matches!(apply(&message(0, 0, 0, 3, INVALIDATE)), IotlbError::Range { .. }));
    assert!(matches!(apply(&message(u64::MAX, 2, 0, 3, INVALIDATE)), IotlbError::Range { .. }));
    assert!(iotlb.is_empty());
}

#[test]
fn a_front_end_that_adds_without_end_makes_us_forget_but_never_the_newest() {
    let mut iotlb = Iotlb::default();
    for n in 0..MAX_ENTRIES as u64 {
        assert_eq!(iotlb.update(0x4000 * n, 0x3000, 0, RW), Ok(Change::Added));
    }
    for n in MAX_ENTRIES as u64..3 * MAX_ENTRIES as u64 {
        assert_eq!(iotlb.update(0x4000 * n, 0x3000, 0, RW), Ok(Change::Removed));
        assert_eq!((iotlb.len(), user(&iotlb, 0x4000 * n)), (MAX_ENTRIES, Some(0)));
    }
    let entry = iotlb.entries[0];
    assert_eq!(iotlb.invalidate(entry.first + 0x1000, 0x1000), Ok(Change::Removed));
    assert_eq!(iotlb.len(), MAX_ENTRIES, "an entry cut in two");
}

#[derive(Clone, Debug)]
enum Step {
    Update(u64, u64, u64, Permission),
    Invalidate(u64, u64),
}

/// Addresses below 48; user addresses mostly such that entries can continue each other.
fn step() -> impl Strategy<Value = Step> {
    let permission = prop_oneof![Just(Permission::Read), Just(Permission::Write), Just(RW), Just(RW)];
    let update = (0..40u64, 1..9u64, 0..3u64, permission)
        .prop_map(|(iova, size, place, permission)| Step::Update(iova, size, 100 * place + iova, permission));
    let invalidate = (0..40u64, 1..9u64).prop_map(|(iova, size)| Step::Invalidate(iova, size));
    prop_oneof![3 => update, 1 => invalidate]
}

proptest! {
    #[test]
    fn each_address_translates_as_the_last_message_about_it_said(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (mut iotlb, mut naive) = (Iotlb::default(), [None; 48]);
        for step in steps {
            let before = naive;
            let change = match step {
                Step::Update(iova, size, user, permission) => {
                    for n in 0..size {
                        naive[(iova + n) as usize] = Some((user + n, permission));
                    }
                    iotlb.update(iova, size, user, permission).unwrap()
                }
                Step::Invalidate(iova, size) => {
                    naive[iova as usize..(iova + size) as usize].fill(None);
                    iotlb.invalidate(iova, size).unwrap()
                }
            };
            let lost = before.iter().zip(&naive).any(|(old, new)| old.is_some() && old != new);
            prop_assert!(!lost || change == Change::Removed);
            prop_assert_eq!(change == Change::None, before == naive);
            for pair in iotlb.entries.windows(2) {
                prop_assert!(pair[0].last < pair[1].first && !pair[0].continues_in(&pair[1]), "{:?}", iotlb);
            }
            let translations = &iotlb;
            for (iova, expected) in (0..).zip(&naive) {
                for needed in [Permission::Read, Permission::Write, RW] {
                    let expected = expected.filter(|(_, has)| has.allows(needed)).map(|(user, _)| user);
                    let found = translations.translate(iova, 100, needed);
                    prop_assert_eq!(found.map(|(user, _)| user), expected);
                    for more in 0..found.map_or(0, |(_, len)| u64::from(len)) {
                        let at = naive[(iova + more) as usize].map(|(user, _)| user - more);
                        prop_assert_eq!(at, expected, "{} bytes on", more);
                    }
                }
            }
        }
    }
}
