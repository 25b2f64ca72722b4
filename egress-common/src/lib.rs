//! What the kernel programs and the agent share. No I/O, no allocation, no unsafe.
#![no_std]
#![forbid(unsafe_code)]

pub mod outcome;
