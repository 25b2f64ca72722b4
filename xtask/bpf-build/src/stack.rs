//! How much of the stack the programs of an object use, as the verifier counts it.

use std::collections::BTreeMap;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

use super::btf::Malformed;

/// Opcodes of instruction-set.rst in the kernel's documentation.
const CALL: u8 = 0x85;
const MOV64_REGISTER: u8 = 0xbf;
const ADD64_IMMEDIATE: u8 = 0x07;
/// `src` of a call of another function of the program.
const PSEUDO_CALL: u8 = 1;
/// The register that holds the frame's upper end.
const FRAME: u8 = 10;
/// kernel/bpf/verifier.c, `check_max_stack_depth`: every frame counts in steps of so many bytes, and one at least.
const STEP: u32 = 32;

/// A function's place: its section and its offset there.
type Place = (usize, u64);

/// One function.
#[derive(Debug, Default)]
struct Function {
    name: String,
    is_program: bool,
    depth: u32,
    calls: Vec<Place>,
}

/// The stack of every program in `elf`, in bytes: its own frame and those of the deepest chain of functions that it
/// calls, as the kernel adds them up. The kernel allows 512.
///
/// # Errors
///
/// The object is no ELF file, or calls what it does not contain.
pub fn stacks(elf: &[u8]) -> Result<BTreeMap<String, u32>, Malformed> {
    let file = object::File::parse(elf).map_err(|_| Malformed("not an ELF file"))?;
    let functions = functions(&file)?;
    functions
        .iter()
        .filter(|(_, function)| function.is_program)
        // The verifier allows no more than eight frames, and thereby no recursion.
        .map(|(place, function)| Ok((function.name.clone(), chain(&functions, *place, 8)?)))
        .collect()
}

fn chain(functions: &BTreeMap<Place, Function>, place: Place, frames: u32) -> Result<u32, Malformed> {
    let function = functions
        .get(&place)
        .ok_or(Malformed("a call of what is no function"))?;
    let left = frames.checked_sub(1).ok_or(Malformed("calls nest too deeply"))?;
    let mut deepest = 0;
    for callee in &function.calls {
        deepest = chain(functions, *callee, left)?.max(deepest);
    }
    Ok(function.depth.max(1).next_multiple_of(STEP) + deepest)
}

fn functions(file: &object::File<'_>) -> Result<BTreeMap<Place, Function>, Malformed> {
    let mut functions = BTreeMap::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
    {
        let section = symbol.section_index().ok_or(Malformed("a function nowhere"))?;
        let code = code(file, section, symbol.address(), symbol.size())?;
        let calls = calls(file, section, symbol.address(), code)?;
        let in_text = file
            .section_by_index(section)
            .is_ok_and(|section| section.name() == Ok(".text"));
        let function = Function {
            name: symbol.name().unwrap_or_default().to_owned(),
            // The others are called by programs.
            is_program: !in_text,
            depth: depth(code),
            calls,
        };
        functions.insert((section.0, symbol.address()), function);
    }
    Ok(functions)
}

fn code<'a>(
    file: &object::File<'a>,
    section: SectionIndex,
    address: u64,
    size: u64,
) -> Result<&'a [u8], Malformed> {
    file.section_by_index(section)
        .ok()
        .and_then(|section| section.data_range(address, size).ok()?)
        .ok_or(Malformed("a function outside its section"))
}

/// How far below the frame's upper end the code reaches: by loads and stores, and by pointers that it makes.
fn depth(code: &[u8]) -> u32 {
    let mut below: i64 = 0;
    // What register holds the frame's end plus how much.
    let mut pointers: [Option<i64>; 16] = [None; 16];
    for instruction in code.as_chunks::<8>().0 {
        let [opcode, registers, rest @ ..] = *instruction;
        let (to, from) = (usize::from(registers & 0xf), registers >> 4);
        let offset = i64::from(i16::from_le_bytes([rest[0], rest[1]]));
        let immediate = i64::from(i32::from_le_bytes([rest[2], rest[3], rest[4], rest[5]]));
        match opcode {
            MOV64_REGISTER => pointers[to] = (from == FRAME).then_some(0),
            ADD64_IMMEDIATE => {
                pointers[to] = pointers[to].map(|at| at + immediate);
                below = below.min(pointers[to].unwrap_or(0));
            }
            // BPF_LDX, BPF_ST and BPF_STX: the low three bits.
            _ => match opcode & 0x07 {
                1 => {
                    below = below.min(if from == FRAME { offset } else { 0 });
                    pointers[to] = None;
                }
                2 | 3 => below = below.min(if to == usize::from(FRAME) { offset } else { 0 }),
                _ => pointers[to] = None,
            },
        }
    }
    u32::try_from(-below).unwrap_or(u32::MAX)
}

fn calls(
    file: &object::File<'_>,
    section: SectionIndex,
    begin: u64,
    code: &[u8],
) -> Result<Vec<Place>, Malformed> {
    let relocations: BTreeMap<u64, RelocationTarget> = file
        .section_by_index(section)
        .map_err(|_| Malformed("a function nowhere"))?
        .relocations()
        .map(|(at, relocation)| (at, relocation.target()))
        .collect();
    let mut calls = Vec::new();
    for (at, instruction) in (begin..).step_by(8).zip(code.as_chunks::<8>().0) {
        if instruction[0] != CALL || instruction[1] >> 4 != PSEUDO_CALL {
            continue;
        }
        let [.., a, b, c, d] = *instruction;
        // Counted in instructions, from the one after the call, or from the symbol's place.
        let bytes = (i64::from(i32::from_le_bytes([a, b, c, d])) + 1) * 8;
        let (target, base) = match relocations.get(&at) {
            Some(RelocationTarget::Symbol(symbol)) => {
                let symbol = file
                    .symbol_by_index(*symbol)
                    .map_err(|_| Malformed("a call of nothing"))?;
                let target = symbol
                    .section_index()
                    .ok_or(Malformed("a call out of the object"))?;
                (target, symbol.address())
            }
            Some(_) => return Err(Malformed("a call of an unknown kind")),
            None => (section, at),
        };
        let place = base
            .checked_add_signed(bytes)
            .ok_or(Malformed("a call of nothing"))?;
        calls.push((target.0, place));
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::depth;

    fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Vec<u8> {
        let mut bytes = vec![opcode, from << 4 | to];
        bytes.extend(offset.to_le_bytes());
        bytes.extend(immediate.to_le_bytes());
        bytes
    }

    #[test]
    fn the_deepest_store_and_the_deepest_pointer_count() {
        // *(u64 *)(r10 - 16) = r1; r2 = r10; r2 += -72; r2 += 8; r3 += -1000
        let mut code = instruction(0x7b, 10, 1, -16, 0);
        assert_eq!(depth(&code), 16);
        code.extend(instruction(0xbf, 2, 10, 0, 0));
        code.extend(instruction(0x07, 2, 0, 0, -72));
        code.extend(instruction(0x07, 2, 0, 0, 8));
        code.extend(instruction(0x07, 3, 0, 0, -1000));
        assert_eq!(depth(&code), 72);
    }

    #[test]
    fn a_register_that_was_written_anew_points_nowhere() {
        // r2 = r10; r2 = *(u64 *)(r1 + 0); r2 += -400
        let mut code = instruction(0xbf, 2, 10, 0, 0);
        code.extend(instruction(0x79, 2, 1, 0, 0));
        code.extend(instruction(0x07, 2, 0, 0, -400));
        assert_eq!(depth(&code), 0);
    }
}
