//! FNV-1a, 64 bits: the same on every node and in every version, which the standard library's hash is not said to be.

/// Where it begins.
pub const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// Goes on from `basis`, which is [`BASIS`] or the hash of what comes before.
#[must_use]
pub fn hash(bytes: &[u8], basis: u64) -> u64 {
    bytes.iter().fold(basis, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
