"""Reactions as SMILES for the chemistry checkpoints: common couplings of common building blocks.

The checkpoints' packages ship a handful of reactions only; these are made of named textbook reactions, so
they are chemistry that the models know, in any number up to a few thousand.
"""

import random

ACIDS = [
    *("CC", "CCC", "CCCC", "CC(C)", "CC(C)C", "C1CC1", "C1CCCCC1", "c1ccccc1", "Cc1ccc(cc1)", "COc1ccc(cc1)"),
    *("Clc1ccc(cc1)", "Fc1ccc(cc1)", "c1ccncc1", "c1ccco1", "c1cccs1", "Brc1ccc(cc1)", "CSc1ccc(cc1)"),
    *("O=[N+]([O-])c1ccc(cc1)", "FC(F)(F)c1ccc(cc1)", "N#Cc1ccc(cc1)"),
]
AMINES = [
    *(
        "CN",
        "CCN",
        "CCCN",
        "CC(C)N",
        "CCCCN",
        "C1CC1N",
        "C1CCCCC1N",
        "NCc1ccccc1",
        "Nc1ccccc1",
        "Nc1ccc(C)cc1",
    ),
    *("Nc1ccc(OC)cc1", "Nc1ccc(F)cc1", "Nc1ccc(Cl)cc1", "C1COCCN1", "C1CCNCC1", "C1CCNC1", "CN1CCNCC1"),
    *("NCCO", "NCCOC", "NCc1ccncc1", "NCc1ccco1", "NCC(F)(F)F", "NCCc1ccccc1"),
]
ALCOHOLS = ["CO", "CCO", "CCCO", "CC(C)O", "OCc1ccccc1", "OCCOC", "C1CCCC1O", "OCC=C", "OCCCl", "OCC#C"]
ARYLS = [
    *(
        "c1ccccc1",
        "c1ccc(C)cc1",
        "c1ccc(OC)cc1",
        "c1ccc(F)cc1",
        "c1ccc(C#N)cc1",
        "c1ccc(C(C)=O)cc1",
        "c1ccncc1",
    ),
    *("c1cccnc1", "c1ccc2ccccc2c1", "c1ccsc1", "c1ccc(C(=O)OC)cc1", "c1cc(F)cc(F)c1", "c1ccc(C(F)(F)F)cc1"),
]
SOLVENTS = ["CN(C)C=O", "C1CCOC1", "ClCCl", "CC#N", "Cc1ccccc1", "C1COCCO1", "CO", "O"]


def reactions(count: int, seed: int = 0) -> list[str]:
    """Make reactions.

    Args:
        count: how many, all different.
        seed: of the choice.

    Returns:
        `reactants>>product` strings.
    """
    chance = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[chance.choice(_KINDS)(chance)] = None
    return list(made)


def _esterification(chance: random.Random) -> str:
    acid, alcohol = chance.choice(ACIDS), chance.choice(ALCOHOLS)
    product = f"{acid}C(=O)O{alcohol[1:]}" if alcohol[0] == "O" else f"{acid}C(=O)O{_turned(alcohol)}"
    return f"{acid}C(=O)O.{alcohol}.O=S(=O)(O)O>>{product}"


def _turned(alcohol: str) -> str:
    """An alcohol that ends in O as a substituent that starts with the carbon beside it."""
    return {"CO": "C", "CCO": "CC", "CCCO": "CCC", "CC(C)O": "C(C)C", "C1CCCC1O": "C1CCCC1"}[alcohol]


def _amide(chance: random.Random) -> str:
    acid, amine = chance.choice(ACIDS), chance.choice([a for a in AMINES if a.startswith("N")])
    return f"{acid}C(=O)Cl.{amine}.{chance.choice(SOLVENTS)}.CCN(CC)CC>>{acid}C(=O){amine}"


def _suzuki(chance: random.Random) -> str:
    left, right = chance.choice(ARYLS), chance.choice(ARYLS)
    halogen = chance.choice(["Br", "I"])
    # The new bond is at the first atom of both, where halogen and boron were.
    product = f"{left[:2]}(-{right.replace('1', '3')}){left[2:]}"
    base = "O=C([O-])[O-].[K+].[K+]"
    return f"{halogen}{left}.OB(O){right}.{chance.choice(SOLVENTS)}.{base}>>{product}"


def _alkylation(chance: random.Random) -> str:
    amine = chance.choice([a for a in AMINES if a.startswith("N")])
    chain, halogen = (
        chance.choice(["C", "CC", "CCC", "CCCC", "C=CC", "CC(C)C"]),
        chance.choice(["Br", "I", "Cl"]),
    )
    return f"{chain}{halogen}.{amine}.{chance.choice(SOLVENTS)}.O=C([O-])[O-].[Cs+].[Cs+]>>{chain}{amine}"


def _ether(chance: random.Random) -> str:
    phenol = chance.choice(["Oc1ccccc1", "Oc1ccc(C)cc1", "Oc1ccc(F)cc1", "Oc1ccc(OC)cc1", "Oc1ccncc1"])
    chain = chance.choice(["C", "CC", "CCC", "CCCC", "C=CC", "CC(C)C", "COCC", "N#CCC"])
    halogen = chance.choice(["Br", "I", "Cl"])
    return f"{chain}{halogen}.{phenol}.{chance.choice(SOLVENTS)}.[H-].[Na+]>>{chain}{phenol}"


def _hydrolysis(chance: random.Random) -> str:
    acid, ester = chance.choice(ACIDS), chance.choice(["C", "CC", "C(C)(C)C", "Cc1ccccc1"])
    return f"{acid}C(=O)O{ester}.[OH-].[Na+].{chance.choice(SOLVENTS)}.O>>{acid}C(=O)O"


_KINDS = [_esterification, _amide, _suzuki, _alkylation, _ether, _hydrolysis]
