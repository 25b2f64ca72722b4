//! The agent's side of the shared structs: any bytes of their size are a value.

use crate::{
    address::Endpoint,
    dns::{Asker, HeldQuery},
    event::{Event, ListenerWanted, Observed, ObservedKey},
    fence::{Fence, Vetted},
    flow::{ClosedFlow, Flow, FlowKey},
    listener::Listeners,
    member::{Allowance, BlockKey, Inbound, InboundKey, Member, PortChunk},
};

// SAFETY: `repr(C)`, made of integers and byte arrays only, padding is explicit (the sizes are asserted in the
// tests of this crate), so every bit pattern is a value and no byte is uninitialised.
unsafe impl aya::Pod for Event {}
// SAFETY: as above.
unsafe impl aya::Pod for Endpoint {}
// SAFETY: as above.
unsafe impl aya::Pod for Asker {}
// SAFETY: as above.
unsafe impl aya::Pod for HeldQuery {}
// SAFETY: as above.
unsafe impl aya::Pod for Flow {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ListenerWanted {}
// SAFETY: as above.
unsafe impl aya::Pod for Listeners {}
// SAFETY: as above.
unsafe impl aya::Pod for Observed {}
// SAFETY: as above.
unsafe impl aya::Pod for ObservedKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ClosedFlow {}
// SAFETY: as above.
unsafe impl aya::Pod for Member {}
// SAFETY: as above.
unsafe impl aya::Pod for BlockKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Allowance {}
// SAFETY: as above.
unsafe impl aya::Pod for PortChunk {}
// SAFETY: as above.
unsafe impl aya::Pod for InboundKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Inbound {}
// SAFETY: as above.
unsafe impl aya::Pod for Fence {}
// SAFETY: as above.
unsafe impl aya::Pod for Vetted {}
