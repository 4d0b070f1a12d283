//! A stack of frames, packed: a profile may hold a hundred thousand, and their frame ids are most of what it weighs.
//!
//! Ids are given in the order in which frames first appear, so most fit in one or two bytes (LEB128). On 100,000 stacks of 60
//! frames that is 10 MB instead of 24. It must not know what frames are.

use super::FrameId;

/// The frames of a stack, innermost first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Stack(Box<[u8]>);

impl Stack {
    /// The frames, innermost first.
    pub fn iter(&self) -> Frames<'_> {
        Frames(&self.0)
    }

    /// The frames in a list, for those who want them from the outer end.
    pub fn to_vec(&self) -> Vec<FrameId> {
        self.iter().collect()
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<FrameId> for Stack {
    fn from_iter<I: IntoIterator<Item = FrameId>>(frames: I) -> Self {
        let mut packed = Vec::new();
        for FrameId(mut id) in frames {
            while id >= 0x80 {
                packed.push(id as u8 | 0x80);
                id >>= 7;
            }
            packed.push(id as u8);
        }
        Self(packed.into_boxed_slice())
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for &'a Stack {
    type Item = FrameId;
    type IntoIter = Frames<'a>;

    fn into_iter(self) -> Frames<'a> {
        self.iter()
    }
}

/// The frames of a [`Stack`].
#[derive(Debug, Clone)]
pub struct Frames<'a>(&'a [u8]);

impl Iterator for Frames<'_> {
    type Item = FrameId;

    fn next(&mut self) -> Option<FrameId> {
        let mut id = 0;
        for shift in (0..u32::BITS).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            id |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        Some(FrameId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_there(ids in prop::collection::vec(prop_oneof![0..300_u32, any::<u32>()], 0..200)) {
            let frames: Vec<FrameId> = ids.into_iter().map(FrameId).collect();
            let stack: Stack = frames.iter().copied().collect();
            prop_assert_eq!(stack.to_vec(), frames.clone());
            prop_assert_eq!(stack.is_empty(), frames.is_empty());
        }
    }
}
