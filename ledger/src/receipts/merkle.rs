//! A tree of hashes over a row of leaves, so that one leaf can be shown without the others.
//!
//! A level pairs its hashes from the left; one that is left over goes up as it is. The shape follows
//! from the number of leaves alone, so a path needs no sides. Leaves and nodes are hashed apart.

use crate::ContentHash;

/// The hash of a leaf with this content.
pub fn leaf(content: &[u8]) -> ContentHash {
    ContentHash::derive("cell/receipt/v1/leaf", &[content])
}

/// The root over these leaves; of none, a hash of its own.
pub fn root(leaves: &[ContentHash]) -> ContentHash {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = up(&level);
    }
    level.first().copied().unwrap_or_else(|| ContentHash::derive("cell/receipt/v1/none", &[]))
}

/// What the leaf in this place needs to be shown: its neighbours on the way up.
pub fn path(leaves: &[ContentHash], place: usize) -> Vec<ContentHash> {
    let (mut level, mut place, mut path) = (leaves.to_vec(), place, Vec::new());
    while level.len() > 1 {
        path.extend(level.get(place ^ 1));
        level = up(&level);
        place /= 2;
    }
    path
}

/// The root that a leaf in this place of so many makes with its neighbours; `None` if the path is too
/// short or too long.
pub fn root_by_path(
    leaf: ContentHash,
    place: u64,
    count: u64,
    path: &[ContentHash],
) -> Option<ContentHash> {
    let (mut hash, mut place, mut count, mut path) = (leaf, place, count, path.iter());
    while count > 1 {
        if place ^ 1 < count {
            let neighbour = *path.next()?;
            hash = if place % 2 == 0 { node(hash, neighbour) } else { node(neighbour, hash) };
        }
        (place, count) = (place / 2, count.div_ceil(2));
    }
    path.next().is_none().then_some(hash)
}

fn up(level: &[ContentHash]) -> Vec<ContentHash> {
    let pair = |pair: &[ContentHash]| match *pair {
        [left, right] => Some(node(left, right)),
        [alone] => Some(alone),
        _ => None,
    };
    level.chunks(2).filter_map(pair).collect()
}

fn node(left: ContentHash, right: ContentHash) -> ContentHash {
    ContentHash::derive("cell/receipt/v1/node", &[left.as_bytes(), right.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_can_be_shown_and_no_other() {
        for count in 1..40_usize {
            let leaves: Vec<_> = (0..count).map(|n| leaf(&n.to_le_bytes())).collect();
            let root = root(&leaves);
            let count = count as u64;
            for (place, of_place) in leaves.iter().enumerate() {
                let path = path(&leaves, place);
                let shown = |leaf, at, path: &[_]| root_by_path(leaf, at, count, path);
                let place = place as u64;
                assert_eq!(shown(*of_place, place, &path), Some(root), "{place} of {count}");
                assert_ne!(shown(leaf(b"another"), place, &path), Some(root));
                assert_eq!(shown(*of_place, place, &[&path[..], &[root]].concat()), None);
                if let Some((_, short)) = path.split_last() {
                    assert_eq!(shown(*of_place, place, short), None);
                    assert_ne!(shown(*of_place, place ^ 1, &path), Some(root));
                }
            }
        }
    }
}
